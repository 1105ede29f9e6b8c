"""Saved weights -> samples."""
