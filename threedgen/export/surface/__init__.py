"""What a mesh wears: textures baked from a field and refined."""
