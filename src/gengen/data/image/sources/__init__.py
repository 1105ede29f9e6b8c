"""Where pictures come from, a file a source."""
