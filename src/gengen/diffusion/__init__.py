"""Diffusion as pure functions over tensors: paths, parameterizations, times, weightings, guidance, samplers."""
