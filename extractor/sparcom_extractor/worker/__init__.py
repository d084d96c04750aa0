"""Worker classes for vLLM's platforms. vLLM gets their names as `worker_cls` and instantiates them in its processes."""
