"""Conversations, preferences and prompts: messages to tokens."""
