"""Finds the gated FFNs and MoE layers of a model, or says why they cannot be captured."""
