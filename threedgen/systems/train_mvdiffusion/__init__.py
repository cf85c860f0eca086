"""Training MVDiffusion: the attention between the views of a scene, around a frozen 2D model."""
