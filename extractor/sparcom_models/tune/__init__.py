"""Fine-tunes a model on instructions."""
