"""Turns per-step rows into chunks on disk, inside the worker process. Needs NumPy and zarr, neither torch nor vLLM."""
