"""Training loop of all systems, with Lightning: exact resume, atomic checkpoints, moving average of weights."""
