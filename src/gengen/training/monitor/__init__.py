"""What watches a run: its curve, its screen, signals, time and memory."""
