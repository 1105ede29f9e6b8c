"""Images: files to squares of pixels, or their latents."""
