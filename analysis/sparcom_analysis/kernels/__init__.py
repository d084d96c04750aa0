"""Compiled loops (Numba) over bits, top-k experts and sets. They take raw arrays, not archives or categories."""
