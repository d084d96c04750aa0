"""The results as tables, each as CSV, Markdown and LaTeX."""
