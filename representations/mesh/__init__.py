"""Differentiable meshes."""
