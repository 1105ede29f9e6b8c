"""Language models: weights to text."""
