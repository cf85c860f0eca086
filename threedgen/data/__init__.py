"""Training data: image folders, meshes, and multi-view scenes. The procedural toybox data is in `threedgen.toybox`."""
