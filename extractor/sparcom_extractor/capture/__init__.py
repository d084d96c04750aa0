"""Capture in the worker process: send the rows of each step to the sessions of their requests."""
