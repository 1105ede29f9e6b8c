"""Networks: pure modules, one self-contained file a family."""
