"""Computes masks, routes and counts with transformers and compares them with an archive."""
