"""Measures of the router of one MoE model."""
