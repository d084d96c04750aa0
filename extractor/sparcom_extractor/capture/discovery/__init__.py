"""Find the gated FFNs and MoE layers of a model, or report why they cannot be captured."""
