"""Compare archives with Hugging Face transformers, and run the self-test."""
