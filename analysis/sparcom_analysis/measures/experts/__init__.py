"""Measures of one MoE model's router."""
