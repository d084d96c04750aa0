"""Measure agreement between annotators and resolve disputes."""
