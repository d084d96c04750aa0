"""Compares archives with Hugging Face transformers, and runs the self-test."""
