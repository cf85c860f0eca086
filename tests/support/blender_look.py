"""Run by a Python that has Blender (`pip install bpy`): python blender_look.py FILE.glb CAMERA.json OUT

CAMERA.json: c2w (4, 4) in Blender's world, fov in radians, pixels. Writes OUT.npz (what was imported: vertices,
corners, tangents and signs that Blender computes) with the names and properties as JSON, and OUT.png, the base colour
alone through Cycles.
"""

import json
import sys

import bpy
import numpy as np
from mathutils import Matrix


def imported(path):
    """The mesh object of a GLB in an otherwise empty scene."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=path)
    (body,) = [thing for thing in bpy.data.objects if thing.type == "MESH"]
    bpy.context.view_layer.update()
    return body


def told(body):
    """Arrays of the mesh and its properties."""
    body.data.calc_tangents()
    loops = body.data.loops
    return {
        "vertices": np.array([body.matrix_world @ vertex.co for vertex in body.data.vertices]),
        "corners": np.array([loop.vertex_index for loop in loops]),
        "tangents": np.array([loop.tangent for loop in loops]),
        "signs": np.array([loop.bitangent_sign for loop in loops]),
        "properties": json.dumps({"name": body.name, "prompt": body.get("prompt"), "seed": body.get("seed")}),
    }


def glow(body):
    """Lets the surface shine in its base colour, so that no light is needed."""
    nodes = body.data.materials[0].node_tree
    (texture,) = [n for n in nodes.nodes if n.type == "TEX_IMAGE" and n.image.colorspace_settings.name == "sRGB"]
    (output,) = [n for n in nodes.nodes if n.type == "OUTPUT_MATERIAL"]
    light = nodes.nodes.new("ShaderNodeEmission")
    nodes.links.new(texture.outputs["Color"], light.inputs["Color"])
    nodes.links.new(light.outputs["Emission"], output.inputs["Surface"])


def picture(view, path):
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.matrix_world = Matrix(view["c2w"])
    camera.data.angle = view["fov"]
    bpy.context.collection.objects.link(camera)
    scene = bpy.context.scene
    scene.camera, scene.render.engine = camera, "CYCLES"
    scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 16, False
    scene.render.resolution_x = scene.render.resolution_y = view["pixels"]
    scene.render.resolution_percentage, scene.render.film_transparent = 100, True
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    scene.render.filepath = path
    bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    file, camera_file, out = sys.argv[1:]
    body = imported(file)
    np.savez(f"{out}.npz", **told(body))
    glow(body)
    with open(camera_file, encoding="utf-8") as text:
        picture(json.load(text), f"{out}.png")
