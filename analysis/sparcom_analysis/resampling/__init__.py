"""Intervals, permutation tests and length control: one of each for all measures."""
