"""The project's own checker of a GLB: is the file sound, is the mesh a body, do UVs, tangents and maps hold?

It reads the bytes alone, as an engine would, and shares no code with the writer. The Khronos validator is
stricter about the format and knows nothing of holes, overlapping charts or a normal map that points inwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from threedgen.export.files.read_glb import Broken, Glb, read_glb
from threedgen.export.shape.topology import area_vectors, degenerate, signed_volume, topology, weld
from threedgen.export.shape.uv_layout import OVERLAP, layout
from threedgen.run.arrays import Array

Severity = Literal["error", "warning"]

MEGABYTE = 1 << 20
FEW = 3000
"""Triangles below which a handful of edges may have four faces: the price of a thin part."""
CROWDED = 10
COVERAGE, DENSITY, CHARTS, GAP = 0.35, (0.7, 1.4), 400, 2
HULL, LOOSE = 130, 0.05
"""Vertices of a collision shape, and how far it may end from the ends of the asset, as a share of its size."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. error: the asset is broken; warning: it works, but could be better."""

    severity: Severity
    code: str
    message: str

    @property
    def broken(self) -> bool:
        return self.severity == "error"


error, warning = partial(Finding, "error"), partial(Finding, "warning")


@dataclass(frozen=True)
class Expected:
    """What an asset was asked to be; None: not asked."""

    triangles: int | None = None
    texture: int | None = None
    height: float | None = None
    megabytes: float = 3.0
    gltf_extras: tuple[str, ...] = ()
    layout: bool = True
    """Look at the UV layout too (levels of detail wear the first one's)."""
    scene: bool = False
    """Of many pieces, open or closed, anywhere, seen from inside: it need not be a body, nor stand on the ground, nor
    have few charts."""


def check_glb(data: bytes, expected: Expected = Expected()) -> list[Finding]:  # noqa: B008  frozen
    """All findings about a textured GLB; none is a clean bill."""
    try:
        glb = read_glb(data)
    except Broken as fault:
        return [error("file", str(fault))]
    findings = [*_file(glb, data, expected)]
    if "POSITION" not in glb.attributes or not len(glb.faces):
        return [*findings, error("empty", "the file holds no triangles")]
    bad = [name for name, values in glb.attributes.items() if not np.isfinite(values).all()]
    if bad:
        return [*findings, error("finite", f"values of {', '.join(bad)} are not finite")]
    if int(glb.faces.max()) >= len(glb.attributes["POSITION"]):
        return [*findings, error("indices", "a face names a vertex that is not there")]
    checks = _body, _faces, _place, _directions, _uv, _maps
    return findings + [finding for check in checks for finding in check(glb, expected)]


def _file(glb: Glb, data: bytes, expected: Expected) -> Iterator[Finding]:
    for problem in glb.problems:
        yield error("format", problem)
    if len(data) > expected.megabytes * MEGABYTE:
        size = len(data) / MEGABYTE
        yield warning("size", f"the file has {size:.1f} MB, more than {expected.megabytes:g}")
    for name in ("POSITION", "NORMAL", "TANGENT", "TEXCOORD_0"):
        if name not in glb.attributes:
            yield error("attributes", f"the mesh has no {name}")
    missing = [key for key in expected.gltf_extras if key not in glb.gltf_extras]
    if missing:
        yield error("extras", f"the extras do not tell {', '.join(missing)}")


def _body(glb: Glb, expected: Expected) -> Iterator[Finding]:
    """Do the triangles, joined again where seams split them, enclose something?"""
    if expected.scene:
        return
    vertices, faces, _ = weld(glb.attributes["POSITION"], glb.faces)
    found = topology(vertices, faces)
    few = len(faces) < FEW and found.crowded_edges <= CROWDED
    counts: list[tuple[Severity, str, int, str]] = [
        ("error", "open", found.open_edges, "edges have one face: the surface has holes"),
        ("warning" if few else "error", "crowded", found.crowded_edges, "edges have more than two faces"),
        ("error", "winding", found.twisted_edges, "edges join faces that disagree about where outside is"),
    ]
    for severity, code, count, what in counts:
        if count:
            yield Finding(severity, code, f"{count} {what}")
    if found.volume <= 0:
        yield error("inside-out", "the faces look inwards")


def _faces(glb: Glb, expected: Expected) -> Iterator[Finding]:
    """The triangles one by one."""
    flat = int(degenerate(glb.attributes["POSITION"], glb.faces).sum())
    unused = len(glb.attributes["POSITION"]) - len(np.unique(glb.faces))
    if flat:
        yield warning("degenerate", f"{flat} triangles have no area")
    if unused:
        yield warning("unused", f"{unused} vertices belong to no face")
    if expected.triangles is not None and len(glb.faces) > expected.triangles:
        yield error("budget", f"{len(glb.faces)} triangles, more than the {expected.triangles} asked for")


def _place(glb: Glb, expected: Expected) -> Iterator[Finding]:
    """Bottom at 0, middle over the origin, as high as asked."""
    low, high = glb.attributes["POSITION"].min(axis=0), glb.attributes["POSITION"].max(axis=0)
    near = 1e-4 * max(float((high - low).max()), 1e-30)
    off = max(abs(float(low[1])), abs(float(low[0] + high[0])) / 2, abs(float(low[2] + high[2])) / 2)
    if expected.height is not None and abs(float(high[1] - low[1]) - expected.height) > 1e-4 * expected.height:
        yield error("height", f"{high[1] - low[1]:.4g} m high instead of {expected.height:g}")
    if expected.layout and not expected.scene and off > near:
        yield error("pivot", f"the origin is {off:.3g} m from the middle of the bottom")


def _directions(glb: Glb, expected: Expected) -> Iterator[Finding]:
    """Normals and tangents: unit, at right angles, outwards."""
    normal, tangent = glb.attributes.get("NORMAL"), glb.attributes.get("TANGENT")
    if normal is None:
        return
    if np.abs(np.linalg.norm(normal, axis=1) - 1).max() > 1e-3:
        yield error("normals", "normals are not of length 1")
    outward = area_vectors(glb.attributes["POSITION"], glb.faces)
    agree = (outward * normal[glb.faces].mean(axis=1)).sum(axis=1) >= 0
    if agree.mean() < 0.99:
        yield error("normals", f"{1 - agree.mean():.0%} of the normals look inwards")
    if tangent is None:
        return
    if np.abs(np.linalg.norm(tangent[:, :3], axis=1) - 1).max() > 1e-3:
        yield error("tangents", "tangents are not of length 1")
    if not np.isin(tangent[:, 3], (-1, 1)).all():
        yield error("tangents", "the sign of a tangent is neither 1 nor -1")
    if np.abs((tangent[:, :3] * normal).sum(axis=1)).max() > 1e-2:
        yield error("tangents", "tangents are not at right angles to the normals")
    wrong = _wrong_signs(glb)
    if wrong > 0.02:
        yield error(
            "tangents", f"{wrong:.0%} of the faces have tangents against their UVs: a normal map looks inverted"
        )


def _wrong_signs(glb: Glb) -> float:
    """Share of faces, by area, whose corners' tangent frame runs against the way their UVs run (v upwards)."""
    if "TEXCOORD_0" not in glb.attributes:
        return 0.0
    uv = glb.attributes["TEXCOORD_0"][glb.faces].astype(np.float64)
    d = uv[:, 1:] - uv[:, :1]
    upwards = -(d[:, 0, 0] * d[:, 1, 1] - d[:, 0, 1] * d[:, 1, 0])  # the file's v runs downwards
    area = np.linalg.norm(area_vectors(glb.attributes["POSITION"], glb.faces), axis=1)
    sign = glb.attributes["TANGENT"][glb.faces, 3].sum(axis=1)
    wrong = (np.sign(sign) * np.sign(upwards) < 0) & (np.abs(sign) == 3)
    return float(area[wrong].sum() / max(area.sum(), 1e-30))


def _uv(glb: Glb, expected: Expected) -> Iterator[Finding]:
    """UVs inside the texture, and how their charts lie there."""
    uv = glb.attributes.get("TEXCOORD_0")
    if uv is None:
        return
    if uv.min() < 0 or uv.max() > 1:
        yield error("uv-range", f"UVs run from {uv.min():.3g} to {uv.max():.3g}, outside of [0, 1]")
        return
    if not expected.layout:
        return
    size = expected.texture or max((max(pixels.shape[:2]) for pixels in glb.images.values()), default=1024)
    found = layout(glb.attributes["POSITION"], glb.faces, uv * (1, -1) + (0, 1), size)
    if found.overlap > OVERLAP:
        yield error("uv-overlap", f"{found.overlap:.2%} of the covered texels belong to two places of the surface")
    low, high = found.density
    for wrong, text in (
        (found.coverage < COVERAGE, f"only {found.coverage:.0%} of the texture is used"),
        (low < DENSITY[0] or high > DENSITY[1], f"texels are {low:.2f} to {high:.2f} of their median size"),
        (found.charts > CHARTS and not expected.scene, f"the texture is cut into {found.charts} charts"),
        (found.gap < GAP, f"two charts are only {found.gap:.1f} texels apart, so their colours mix"),
    ):
        if wrong:
            yield warning("uv-layout", text)


def _maps(glb: Glb, expected: Expected) -> Iterator[Finding]:
    """The pictures: there, square, as large as asked, and a normal map that points outwards."""
    if "baseColorTexture" not in glb.images:
        yield error("maps", "the material has no base colour")
    for name, pixels in glb.images.items():
        height, width = pixels.shape[:2]
        if height != width or (expected.texture and height != expected.texture):
            asked = f" instead of {expected.texture} x {expected.texture}" if expected.texture else ", not square"
            yield error("maps", f"the {name} has {width} x {height} texels{asked}")
    normal = glb.images.get("normalTexture")
    if normal is not None and normal[..., 2].mean() < 0.8 * 255:
        yield warning(
            "maps", f"the normal map's blue is {normal[..., 2].mean() / 255:.2f} on average: it hardly points outwards"
        )


def check_collider(parts: list[tuple[Array, Array]], mesh: Array) -> list[Finding]:
    """Findings about convex collision shapes (vertices, faces): closed, of few vertices, as large as points (V, 3)."""
    findings = []
    for number, (vertices, faces) in enumerate(parts):
        if not topology(vertices, faces).manifold or signed_volume(vertices, faces) <= 0:
            findings.append(error("collider", f"collision shape {number} is not closed"))
        if len(vertices) > HULL:
            findings.append(warning("collider", f"collision shape {number} has {len(vertices)} vertices"))
    points = np.concatenate([vertices for vertices, _ in parts])
    size = np.ptp(mesh, axis=0)
    short = max(
        np.abs(points.min(axis=0) - mesh.min(axis=0)).max(), np.abs(points.max(axis=0) - mesh.max(axis=0)).max()
    )
    if short > LOOSE * size.max():
        text = f"the collision shapes end {short / size.max():.0%} of the asset's size off its own ends"
        findings.append(warning("collider", text))
    return findings
