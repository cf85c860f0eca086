"""Consistent renders of a mesh with projected images, and the writer of the textured mesh as GLB."""

import torch
from torch import Tensor

from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.surface.blend import BlendOptions
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import png, to_uint8, write_png
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic
from threedgen.train.task import Task

TEXTURE = "texture.png"


def render_consistent(
    mesh: TexturedMesh, size: int, options: BlendOptions, cameras: Cameras, images: Tensor, known: Tensor | None = None
) -> Tensor:
    """Make images consistent: project them onto a mesh as a texture, and render the mesh for the same cameras.

    Args:
        size: side of the texture in pixels.
        cameras: N cameras.
        images: (N, H, W, 3) in [0, 1].
        known: (N,) bool, images that have priority over the others where they show the mesh; None: no image has.

    Returns:
        Renders (N, H, W, 3) in [0, 1].
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
    """Write texture.png and the textured mesh as the GLB `file` to the run folder. Raises OSError.

    `mesh` is in the place and size of the original file, with world axes. `texture` is (H, W, 3) in [0, 1], row 0 at
    v = 1. `name` and `extras` are the object's name and custom properties in the GLB.
    """
    image = to_uint8(texture)
    write_png(task.folder / TEXTURE, image)
    data = textured_glb_bytes(mesh, {"base_colour": png(image)}, name, extras, **material)
    write_atomic(task.folder / file, data)
