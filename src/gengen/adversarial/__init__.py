"""Adversarial training as pure functions over tensors: losses, the slope penalty, their schedules, augmentations."""
