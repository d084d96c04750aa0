"""Uploaded files of instructions: receive, check, store, read, expire."""
