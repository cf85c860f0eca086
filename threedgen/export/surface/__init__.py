"""Textures of an asset: baking, refinement, projection of images."""
