"""Small textured meshes for tests of the export."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import trimesh

from threedgen.export.shape.mesh import TexturedMesh, placed, placement
from threedgen.export.shape.unwrap import unwrap
from threedgen.geometry.images import png


@dataclass(frozen=True)
class Textures:
    """Textures (T, T, 3) uint8; None: no such texture.

    base_colour: unlit colour, sRGB. normal: tangent space, +Y up, 128 + 127 n. orm: red occlusion, green roughness,
    blue metal; linear.
    """

    base_colour: Any
    normal: Any | None = None
    orm: Any | None = None

    def maps(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


def textured(body: trimesh.Trimesh | None = None, size: int = 256) -> tuple[TexturedMesh, Textures]:
    """Unwrap a mesh (default: an icosphere of 320 triangles), place it on the ground; return it with its textures."""
    body = body or trimesh.creation.icosphere(2, 0.5)
    mesh, _ = unwrap(np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int32), size)
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    colour = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(40)), axis=-1)
    flat = np.broadcast_to(np.array([128, 128, 255], np.uint8), (size, size, 3))
    orm = np.broadcast_to(np.array([255, 255, 0], np.uint8), (size, size, 3))
    return placed(mesh, *placement(mesh.vertices)), Textures(colour, flat, orm)


def files(textures: Textures) -> dict[str, bytes]:
    return {name: png(pixels) for name, pixels in textures.maps().items()}
