"""Compiled loops (Numba) over bits, router choices and sets. They take raw arrays, not archives or categories."""
