"""Export of a trained field (3D representation) as a game asset: glTF, OBJ, USDZ, levels of detail, colliders."""
