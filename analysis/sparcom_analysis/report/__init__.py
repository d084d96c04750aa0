"""Runs the measures and writes report.html, metrics.json, tables, figures and lists."""
