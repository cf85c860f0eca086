"""Fields, meshes, backgrounds, materials and the volume renderer.

In a checkout this folder lies beside the package `threedgen` and is imported as `threedgen.representations`.
"""

if __name__ == "representations":
    raise ImportError("representations is a part of threedgen. Import threedgen.representations instead.")
