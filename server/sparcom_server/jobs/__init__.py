"""Extraction jobs: the queue, reports and failures."""
