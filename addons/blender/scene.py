"""Scene operations of the add-on: export the mesh to texture, and import the asset at the 3D cursor."""

from pathlib import Path

import bpy
from mathutils import Matrix

from .client import StudioError


def selected_mesh(context: bpy.types.Context) -> bpy.types.Object:
    """Return the active object. Raises StudioError unless it is a selected mesh with faces."""
    found = context.active_object
    if found is None or found.type != "MESH" or not found.select_get():
        raise StudioError("No mesh is selected. Select the mesh to texture")
    if not found.evaluated_get(context.evaluated_depsgraph_get()).data.polygons:
        raise StudioError(f"The mesh {found.name} has no faces. Select another one")
    return found


def export_mesh(context: bpy.types.Context, source: bpy.types.Object, path: Path) -> None:
    """Write a mesh object as GLB, with modifiers, rotation and scale applied, and with its origin at (0, 0, 0).

    Raises StudioError if Blender cannot export the mesh.
    """
    selected, active = list(context.selected_objects), context.view_layer.objects.active
    bpy.ops.object.select_all(action="DESELECT")
    copy = source.copy()
    copy.animation_data_clear()
    copy.constraints.clear()
    copy.parent = None
    copy.matrix_world = Matrix.Translation(-source.matrix_world.translation) @ source.matrix_world
    context.scene.collection.objects.link(copy)
    copy.select_set(True)
    options = {"export_apply": True, "export_materials": "NONE", "export_animations": False, "export_skins": False}
    try:
        bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLB", use_selection=True, **options)
    except RuntimeError as error:
        raise StudioError(f"Blender could not export the mesh {source.name}: {error}") from error
    finally:
        bpy.data.objects.remove(copy)
        for other in selected:
            other.select_set(True)
        context.view_layer.objects.active = active


def import_asset(context: bpy.types.Context, path: Path, source: str = "") -> list[bpy.types.Object]:
    """Import a GLB file at the 3D cursor, and return the imported objects, which are then selected.

    `source` is the name of the mesh that was textured; "": none. Without `source`, lengths in the file are metres, and
    are converted by the scene's unit scale. With `source`, they are scene units, and the objects are named after it.
    Raises StudioError if Blender cannot import the file.
    """
    before = set(context.scene.objects)
    try:
        bpy.ops.import_scene.gltf(filepath=str(path))
    except RuntimeError as error:
        raise StudioError(f"Blender could not import the asset: {error}") from error
    units = context.scene.unit_settings
    scale = 1.0 if source or units.system == "NONE" else 1 / units.scale_length
    found = [imported for imported in context.scene.objects if imported not in before]
    for imported in found:
        if imported.parent is None:
            imported.matrix_world = (
                Matrix.LocRotScale(context.scene.cursor.location, None, (scale,) * 3) @ imported.matrix_world
            )
        if source:
            imported.name = f"{source} textured"
    return found
