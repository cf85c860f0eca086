"""Task `generate`: generation of a 3D object from a prompt by score distillation and fitting to sampled views."""
