"""Measures that compare a base model with its fine-tuned version."""
