"""Write the meshes of files, as Blender imports them, to a JSON file. Runs in a Python with the package bpy.

    python read_in_blender.py OUT FILE...

The content is {file: {node: fields of other_readers.Mesh}}. Images are [height, width, RGB bytes in base64].
"""

import base64
import json
import os
import sys
from pathlib import Path

import bpy
import numpy as np

IMPORTERS = {".glb": bpy.ops.import_scene.gltf, ".obj": bpy.ops.wm.obj_import, ".usdz": bpy.ops.wm.usd_import}
IMPORTERS[".ply"] = bpy.ops.wm.ply_import
SLOTS = {"Base Color": "base_colour", "Normal": "normal", "Roughness": "roughness", "Metallic": "metallic"}


def read(path: str) -> dict[str, object]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    IMPORTERS[Path(path).suffix](filepath=path)
    bpy.context.view_layer.update()
    return {thing.name: record(thing) for thing in bpy.data.objects if thing.type == "MESH"}


def record(thing: "bpy.types.Object") -> dict[str, object]:
    mesh, turn = thing.data, thing.matrix_world.to_3x3()
    world = [thing.matrix_world @ vertex.co for vertex in mesh.vertices]
    found: dict[str, object] = {"vertices": len(world)}
    found["corners"] = [gltf_axes(world[loop.vertex_index]) for loop in mesh.loops]
    found["normals"] = [gltf_axes((turn @ normal.vector).normalized()) for normal in mesh.corner_normals]
    if mesh.uv_layers:
        found["uv"] = [tuple(loop.uv) for loop in mesh.uv_layers[0].data]
    for material in filter(None, mesh.materials):
        found["material"] = material.name
        surface = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
        images = {slot: image_of(surface.inputs[name]) for name, slot in SLOTS.items()}
        found["maps"] = {slot: pixels(image) for slot, image in images.items() if image is not None}
        free = [name for name in ("Roughness", "Metallic") if not surface.inputs[name].links]
        found["factors"] = {SLOTS[name]: surface.inputs[name].default_value for name in free}
    return found


def gltf_axes(vector: "bpy.types.Vector") -> tuple[float, float, float]:
    x, y, z = vector
    return x, z, -y


def image_of(socket: "bpy.types.NodeSocket") -> "bpy.types.Image | None":
    # the first image upstream of a socket
    for link in socket.links:
        if link.from_node.type == "TEX_IMAGE":
            return link.from_node.image
        for inner in link.from_node.inputs:
            if (image := image_of(inner)) is not None:
                return image
    return None


def pixels(image: "bpy.types.Image") -> list[object]:
    width, height = image.size
    values = np.array(image.pixels[:]).reshape(height, width, 4)[::-1, :, :3]
    return [height, width, base64.b64encode(np.round(255 * values).astype(np.uint8).tobytes()).decode()]


if __name__ == "__main__":
    out, *files = sys.argv[1:]
    Path(out).write_text(json.dumps({Path(file).name: read(file) for file in files}))
    os._exit(0)  # bpy can crash when it is unloaded
