"""Compute masks, routes and counts with transformers, and compare them with an archive."""
