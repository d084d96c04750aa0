"""Write per-step rows as chunks on disk, in the worker process. Needs NumPy and zarr, but neither torch nor vLLM."""
