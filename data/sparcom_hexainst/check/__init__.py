"""Check a set of instructions: duplicates, contamination, balance, language and spelling."""
