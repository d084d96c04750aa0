"""All parts of vLLM that SPARCOM uses, typed, in one place."""
