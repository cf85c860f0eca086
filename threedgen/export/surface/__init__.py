"""Textures of an asset: bake a field's colours, refine them by renders, project images, colour unseen texels."""
