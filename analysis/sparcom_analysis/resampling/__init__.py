"""Bootstrap intervals, permutation tests and length control, used by all measures."""
