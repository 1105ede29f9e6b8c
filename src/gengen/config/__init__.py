"""The whole vocabulary of gengen as torch-free dataclasses, and how a command line becomes one of them."""
