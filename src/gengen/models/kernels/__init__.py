"""What a transformer spends its time in: attention, linear maps, and the output head with its loss."""
