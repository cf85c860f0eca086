"""Generation of a 3D object from a prompt."""
