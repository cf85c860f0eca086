"""Textured meshes: texture coordinates (UV), renders of projected images, and the GLB file."""

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.shape.mesh import TexturedMesh, vertex_normals, vertex_tangents
from threedgen.export.shape.topology import area_vectors, degenerate, weld
from threedgen.export.shape.unwrap import UnwrapError, claims, overlap, unwrap
from threedgen.export.surface.blend import BlendOptions
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import png, to_uint8, write_png
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic
from threedgen.systems.draw.mesh import SourceMesh
from threedgen.train.task import Task

TEXTURE = "texture.png"
MAX_OVERLAP = 1e-3
"""Maximum fraction of covered texels that belong to two places of the mesh, as rounding causes at chart borders."""
MAX_DEGENERATE = 0.01
"""Maximum fraction of the surface that has no area in the texture."""


def with_uv(source: SourceMesh, texture: int, choice: str = "auto") -> tuple[TexturedMesh, str]:
    """Return the mesh with texture coordinates (UV), and a text for the user that says where they come from.

    `texture` is the side of the texture in texels. `choice` is "own" (coordinates of the file), "unwrap" (new ones), or
    "auto" (own if they are usable, else new). Raises ConfigError if "own" is not usable, or if unwrapping fails.
    """
    fault = "" if choice == "unwrap" else uv_fault(source, texture)
    if choice == "own" and fault:
        raise ConfigError(f"the mesh's own cannot be used: {fault}. Take uv=unwrap", "uv")
    if not fault and choice != "unwrap" and source.uv is not None:
        normals = vertex_normals(source.vertices, source.faces)
        tangents = vertex_tangents(source.vertices, source.faces, normals, source.uv)
        faces = source.faces.astype(np.int32)
        return TexturedMesh(source.vertices, faces, normals, source.uv, tangents), "the mesh's own texture coordinates"
    vertices, faces, _ = weld(source.vertices, source.faces)
    try:
        mesh, charts = unwrap(vertices, faces, texture)
    except UnwrapError as error:
        raise ConfigError(f"{str(error).partition(';')[0]}. Try {2 * texture}", "texture") from None
    why = f" ({fault})" if fault and source.uv is not None else ""
    return mesh, f"new texture coordinates in {charts} charts{why}"


def uv_fault(source: SourceMesh, texture: int) -> str:
    """Return the reason why the texture coordinates of the file cannot be used; "" if they can be used."""
    if source.uv is None:
        return "it has none, or not for all of its parts"
    if not ((source.uv >= 0) & (source.uv <= 1)).all():  # or not finite
        return "some of them are outside of [0, 1]"
    area = np.linalg.norm(area_vectors(source.vertices, source.faces), axis=1)
    lost = float(area[degenerate(np.pad(source.uv, ((0, 0), (0, 1))), source.faces)].sum() / area.sum())
    if lost > MAX_DEGENERATE:
        return f"{lost:.0%} of the surface has no place in the texture"
    first, last = claims(source.uv, source.faces, texture)
    if (share := overlap(first, last)) > MAX_OVERLAP:
        return f"{share:.0%} of the texels belong to two places of the mesh"
    return "" if (first >= 0).any() else "they have no area"


def render_consistent(
    mesh: TexturedMesh, size: int, options: BlendOptions, cameras: Cameras, images: Tensor, known: Tensor | None = None
) -> Tensor:
    """Make images (N, H, W, 3) in [0, 1] consistent: project them onto a mesh, and render it for the same cameras.

    Args:
        size: side of the texture in pixels.
        known: (N,) bool, images that have priority over the others where they show the mesh; None: no image has.
    """
    made = None
    known = torch.zeros(len(images), dtype=torch.bool) if known is None else known
    for chosen in (~known, known):
        if chosen.any():
            at = cameras.select(chosen.nonzero()[:, 0].tolist())
            made = texture_from_views(mesh, size, at, images[chosen].numpy(), options, over=made)
    assert made is not None
    return torch.from_numpy(render(mesh, made.texture, cameras))


def write_glb(
    task: Task, mesh: TexturedMesh, texture: Array, file: str, name: str, extras: dict[str, object], **material: bool
) -> None:
    """Write texture.png, and the textured mesh as a GLB, to the run folder. Raises OSError.

    Args:
        texture: (H, W, 3) in [0, 1]; row 0 is at v = 1.
        file: file name of the GLB.
        name, extras: name of the mesh and JSON data, which are stored in the GLB.
        material: scene=True for an unlit, double-sided material; open_surface=True for a double-sided material.
    """
    image = to_uint8(texture)
    write_png(task.folder / TEXTURE, image)
    write_atomic(task.folder / file, textured_glb_bytes(mesh, {"base_colour": png(image)}, name, extras, **material))
