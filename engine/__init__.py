"""How a run is run: distribution, steps, loops, checkpoints, logs and weight files."""
