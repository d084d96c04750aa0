"""Measures agreement between annotators and settles disputes."""
