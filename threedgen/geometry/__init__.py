"""Cameras, rasteriser, textures, images and their files. This package does not depend on models or tasks."""
