"""One training loop for everything that learns: Lightning's, with exact resume, safe checkpoints and averages."""
