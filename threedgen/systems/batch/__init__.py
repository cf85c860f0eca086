"""Task `batch`: makes one object for each combination of prompt, config and seed, in parallel worker processes."""
