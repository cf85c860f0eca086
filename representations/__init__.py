"""Things that can be seen from a camera: fields, backgrounds, materials and the volume renderer.

In a checkout this folder lies beside the package and is loaded under its one true name, ``threedgen.representations``.
"""

if __name__ == "representations":
    raise ImportError("this folder is a part of threedgen: import threedgen.representations instead")
