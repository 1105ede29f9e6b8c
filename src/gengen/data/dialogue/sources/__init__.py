"""Where conversations, preferences and prompts come from, a file a source."""
