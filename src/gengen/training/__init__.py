"""Objectives as LightningModules, and the trainer around them."""
