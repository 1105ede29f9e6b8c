"""Models of images: weights to images."""
