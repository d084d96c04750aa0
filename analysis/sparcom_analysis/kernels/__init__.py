"""The compiled loops, by Numba: over bits, over router choices, over sparse sets."""
