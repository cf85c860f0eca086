"""Textures of meshes from sampled or given views: objects from six sides, scenes from a camera path."""
