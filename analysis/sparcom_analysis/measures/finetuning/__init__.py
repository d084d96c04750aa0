"""Measures of a base model beside its fine-tuned version."""
