"""Runs and checkpoints on disk: written atomically, verified before use. Knows nothing of Lightning."""
