"""Use the add-on in Blender and write what happens to a JSON file. Runs in a Python with the package bpy.

Arguments: the add-on's zip, the address of a studio with fake runs, its token, the output file.
"""

import importlib
import json
import os
import sys
import time
from types import SimpleNamespace

import bpy

NAME, CURSOR = 'My "odd"/c\u00f4ne', (1.0, 2.0, 3.0)
zip_file, address, token, out = sys.argv[1:]
bpy.ops.extensions.package_install_files(filepath=zip_file, repo="user_default", enable_on_install=True)
module = "bl_ext.user_default.threedgen"
addon = importlib.import_module(module)
preferences, scene = bpy.context.preferences.addons[module].preferences, bpy.context.scene
preferences.address, preferences.token = address, token
scene.cursor.location = CURSOR


def placed() -> dict[str, object]:
    thing = bpy.context.active_object
    return {"name": thing.name, "location": list(thing.location), "scale": list(thing.scale)}


def generate(prompt: str, texture: bool = False) -> dict[str, object]:
    """Run the operator as a script does; return the object at the end, or the error that it reports."""
    scene.threedgen.prompt = prompt
    try:
        result = bpy.ops.threedgen.generate(texture=texture)
    except RuntimeError as error:
        return {"error": str(error)}
    return placed() | {"result": list(result)}


def modal(cancel: bool) -> dict[str, object]:
    """Run the modal operator with calls in place of timer events, which a window would send; return what it did."""
    kind, reports, seen = addon.THREEDGEN_OT_generate, [], []
    timer = bpy.context.window_manager.event_timer_add(1, window=bpy.context.window)
    operator = SimpleNamespace(report=lambda *report: reports.append(report[1]), _timer=timer)
    operator._end = lambda context: kind._end(operator, context)
    addon.start(bpy.context, False)
    while (result := kind.modal(operator, bpy.context, SimpleNamespace(type="TIMER"))) == {"PASS_THROUGH"}:
        seen.append(str(addon._job.progress))
        if cancel and "25 %" in seen[-1] and bpy.ops.threedgen.cancel.poll():
            bpy.ops.threedgen.cancel()
        time.sleep(0.02)
    return {"result": list(result), "reports": reports, "seen": sorted(set(seen)), "idle": addon._job is None}


bpy.ops.object.select_all(action="DESELECT")
found = {"none selected": generate("a dog", texture=True)}
scene.unit_settings.scale_length = 0.5
found["prompt"] = generate('a "blue"  dog')
scene.unit_settings.scale_length = 1
scene.threedgen.prompt = "it waits"
found["cancelled"] = modal(cancel=True)
scene.threedgen.prompt = "a cat"
found["modal"] = modal(cancel=False)
bpy.ops.mesh.primitive_cube_add(location=(-3, 0, 1), rotation=(0.3, 0, 0), scale=(2, 1, 0.5))
cube = bpy.context.active_object
cube.name = NAME
cube.modifiers.new("array", "ARRAY").count = 3
found["texture"] = generate("a red chair", texture=True)
found["cube"] = {"location": list(cube.location), "objects": len(bpy.data.objects)}
found["fails"] = generate("it fails")
found["empty"] = generate("  ")
preferences.token = "wrong"
found["token"] = generate("a dog")
preferences.address = "http://127.0.0.1:9"
found["server"] = generate("a dog")
preferences.address = "http://studio.example"
found["offline"] = generate("a dog")
bpy.ops.preferences.addon_disable(module=module)
found["disabled"] = not hasattr(bpy.types.Scene, "threedgen")
with open(out, "w", encoding="utf-8") as file:
    json.dump(found, file)
os._exit(0)  # bpy can crash when it is unloaded
