"""One objective a file: a batch in, a loss out."""
