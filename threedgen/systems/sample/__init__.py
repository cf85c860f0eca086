"""Task `sample`: samples views of an object or a panorama from a prior, without a 3D representation."""
