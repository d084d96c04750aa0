"""Worker classes for vLLM's platforms; vLLM gets their names as `worker_cls` and makes them in its processes."""
