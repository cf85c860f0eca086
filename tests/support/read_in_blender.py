"""Write the meshes of files, as Blender imports them, to a JSON file. Runs in a Python with the package bpy.

The content is {file: {node: {vertices, corners, uv, material, image}}}, in glTF axes and with v upwards.
"""

import base64
import json
import os
import sys
from pathlib import Path

import bpy
import numpy as np

IMPORTERS = {".glb": bpy.ops.import_scene.gltf, ".obj": bpy.ops.wm.obj_import, ".usdz": bpy.ops.wm.usd_import}


def read(path: str) -> dict[str, object]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    IMPORTERS[Path(path).suffix](filepath=path)
    bpy.context.view_layer.update()
    return {thing.name: record(thing) for thing in bpy.data.objects if thing.type == "MESH"}


def record(thing: "bpy.types.Object") -> dict[str, object]:
    mesh = thing.data
    world = [thing.matrix_world @ vertex.co for vertex in mesh.vertices]
    corners = [(x, z, -y) for x, y, z in (world[loop.vertex_index] for loop in mesh.loops)]
    found: dict[str, object] = {"vertices": len(world), "corners": corners}
    if mesh.uv_layers:
        found["uv"] = [tuple(loop.uv) for loop in mesh.uv_layers[0].data]
    for material in filter(None, mesh.materials):
        found["material"] = material.name
        base = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED").inputs["Base Color"]
        for image in (link.from_node.image for link in base.links if link.from_node.type == "TEX_IMAGE"):
            width, height = image.size
            pixels = np.array(image.pixels[:]).reshape(height, width, 4)[::-1, :, :3]
            rgb = np.round(255 * pixels).astype(np.uint8).tobytes()
            found["image"] = [height, width, base64.b64encode(rgb).decode()]
    return found


if __name__ == "__main__":
    out, *files = sys.argv[1:]
    Path(out).write_text(json.dumps({Path(file).name: read(file) for file in files}))
    os._exit(0)  # bpy can crash when it is unloaded
