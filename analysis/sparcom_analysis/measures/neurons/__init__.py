"""Measures of one model's ISN sets."""
