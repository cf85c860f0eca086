"""Geometry of an asset: closed mesh, UVs, levels of detail, colliders."""
