"""Cameras, meshes seen by cameras, and pictures: mathematics that knows no model."""
