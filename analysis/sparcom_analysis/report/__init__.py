"""Renders report.html, and turns everything into the bytes of files."""
