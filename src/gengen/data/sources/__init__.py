"""Where records come from: the hub, files, pinned packages, procedures."""
