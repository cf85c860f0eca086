"""Training loop of all tasks, based on Lightning: exact resume, atomic checkpoints, moving average of weights."""
