"""What sources share whatever they are sources of: files, the hub, pinned packages, procedures, and skips."""
