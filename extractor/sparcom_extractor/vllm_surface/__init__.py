"""Everything that SPARCOM reads of vLLM, typed, in one place."""
