"""Puts results into the parts of metrics.json; computes nothing but sums and means of what is there."""
