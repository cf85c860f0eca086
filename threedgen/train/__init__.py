"""Training loop of all systems: Lightning with exact resume, atomic checkpoints and averaged weights."""
