"""What may be read and said: filters of prompts and texts. They lower odds and promise nothing (SECURITY.md)."""
