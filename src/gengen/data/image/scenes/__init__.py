"""Pictures composed of a few coloured objects, with captions that are true of them."""
