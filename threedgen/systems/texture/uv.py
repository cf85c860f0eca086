"""Texture coordinates (UV) of a mesh: those of its file if a texture can use them, else new ones from unwrapping."""

import numpy as np

from threedgen.config import ConfigError
from threedgen.export.shape.mesh import TexturedMesh, vertex_normals, vertex_tangents
from threedgen.export.shape.topology import area_vectors, degenerate, weld
from threedgen.export.shape.unwrap import UnwrapError, claims, overlap, unwrap
from threedgen.systems.draw.mesh import SourceMesh

MAX_OVERLAP = 1e-3
"""Maximum fraction of the covered texels that belong to two places of the mesh; rounding overlaps some at borders."""
MAX_DEGENERATE = 0.01
"""Maximum fraction of the surface that has no area in the texture."""


def with_uv(source: SourceMesh, texture: int, choice: str = "auto") -> tuple[TexturedMesh, str]:
    """Return the mesh with texture coordinates, and a text for the user that says where they come from.

    Args:
        texture: side of the texture in texels.
        choice: "own": those of the file; "unwrap": new ones; "auto": those of the file if they can be used, else new.

    Raises:
        ConfigError: the coordinates of the file cannot be used, or the mesh cannot be unwrapped at this size.
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
    if not np.isfinite(source.uv).all():
        return "some of them are not numbers"
    if source.uv.min() < 0 or source.uv.max() > 1:
        return f"they run from {source.uv.min():.3g} to {source.uv.max():.3g}, outside of [0, 1]"
    area = np.linalg.norm(area_vectors(source.vertices, source.faces), axis=1)
    lost = float(area[degenerate(np.pad(source.uv, ((0, 0), (0, 1))), source.faces)].sum() / area.sum())
    if lost > MAX_DEGENERATE:
        return f"{lost:.0%} of the surface has no place in the texture"
    first, last = claims(source.uv, source.faces, texture)
    if (share := overlap(first, last)) > MAX_OVERLAP:
        return f"{share:.0%} of the texels belong to two places of the mesh"
    return "" if (first >= 0).any() else "they have no area"
