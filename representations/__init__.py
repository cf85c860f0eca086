"""Fields, meshes, 3D Gaussians, backgrounds, materials and the volume renderer.

In a git checkout, this folder lies beside the package folder `threedgen`. It is imported as
`threedgen.representations`.
"""

if __name__ == "representations":
    raise ImportError("representations is a part of threedgen. Import threedgen.representations instead.")
