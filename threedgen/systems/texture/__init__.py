"""Task `texture`: projects sampled or given images onto the mesh of an object or a scene."""
