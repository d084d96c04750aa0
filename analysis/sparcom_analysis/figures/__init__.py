"""Draws the results; numbers come in ready."""
