"""Starts a vLLM engine: checks of the model and the processor, and the bootstrap of its subprocesses."""
