"""Training data: the procedural toybox, image folders, mesh folders, and archives of multi-view scenes."""
