"""From a density to a closed mesh with texture coordinates, its levels of detail and its colliders."""
