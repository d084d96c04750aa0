"""Fine-tune a model on instructions with the Trainer of transformers."""
