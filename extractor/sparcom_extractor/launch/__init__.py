"""Start a vLLM engine: checks, arguments, environment, and the bootstrap of its subprocesses."""
