"""The processes of a run: joining, devices, signals, failures, checks before the start."""
