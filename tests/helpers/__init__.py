"""What several folders of tests share: runs and their comparison, processes, stand-ins for data and devices."""
