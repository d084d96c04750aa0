"""Reads archives: which rows count, in checked blocks of bounded size."""
