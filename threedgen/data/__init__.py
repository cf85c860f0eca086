"""Training data: procedural worlds, image folders, mesh folders and scene archives."""
