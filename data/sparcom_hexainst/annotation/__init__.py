"""Forms for human annotators, and reading their answers."""
