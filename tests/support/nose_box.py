"""An object whose sides differ: a long box with a nose that faces +x."""

from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from threedgen.run.arrays import Array
from threedgen.systems.texture.options import TextureConfig

WORLD_TO_GLTF = [1, 2, 0]


def nose_box() -> trimesh.Trimesh:
    """Return the object in world axes; its largest coordinate is 0.5."""
    body = trimesh.creation.box((0.8, 0.5, 0.4))
    nose = trimesh.creation.box((0.2, 0.2, 0.2))
    body.apply_translation([-0.1, 0, 0])
    nose.apply_translation([0.4, 0, 0.1])
    return trimesh.util.concatenate([body, nose])


def write_mesh(path: Path, mesh: trimesh.Trimesh | None = None, axes: Array | None = None) -> Path:
    """Write a mesh, three times as large and off the origin; rows of ``axes``: file axes in the world (glTF's)."""
    made = (mesh or nose_box()).copy()
    rows = np.eye(3)[WORLD_TO_GLTF] if axes is None else axes
    made.vertices = 3 * made.vertices @ rows.T + [1, 2, 0]
    made.export(path)
    return path


def config(path: Path, **values: Any) -> TextureConfig:
    return TextureConfig.model_validate({"task": "texture", "mesh": str(path), "texture": 128, **values})
