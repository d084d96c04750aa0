"""Capture inside the worker process: rows of each step to the session of the request they belong to."""
