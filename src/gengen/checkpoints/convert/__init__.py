"""Weights in other people's layouts."""
