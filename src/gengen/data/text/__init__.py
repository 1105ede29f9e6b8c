"""Text: documents to tokens to windows."""
