"""Says in plain sentences what the numbers show for this model, from metrics.json alone."""
