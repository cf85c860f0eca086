"""Export of a trained field as a game asset: glTF, OBJ, USDZ, levels of detail, colliders."""
