"""Inside the worker process: rows of steps in, chunks on disk out. NumPy only; it knows neither torch nor vLLM."""
