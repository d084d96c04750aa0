"""Fine-tune a model on instructions with transformers' Trainer."""
