"""Things that can be seen from a camera: fields, their encodings, backgrounds, materials and the volume
renderer.

In a checkout this folder lies beside the package and is loaded under its one true name,
``threedgen.representations``.
"""

if __name__ == "representations":
    raise ImportError(
        "import threedgen.representations instead: 'representations' is a folder of the threedgen checkout"
    )
