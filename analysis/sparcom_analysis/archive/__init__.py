"""Selects the rows that count, and reads archives in checked blocks of bounded size."""
