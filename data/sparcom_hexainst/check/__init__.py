"""Checks a set of instructions: duplicates, contamination, balance, language, spelling."""
