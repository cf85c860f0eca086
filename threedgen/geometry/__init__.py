"""Cameras, rasteriser, textures, images and their files. Independent of models and tasks."""
