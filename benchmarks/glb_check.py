"""Validate the files of an asset: GLB structure, closed mesh, UVs, tangents, textures, collider.

The acceptance table and the tests use this module. It reads only the bytes of a file, as a game engine would, and does
not use the code that wrote the file. The Khronos validator is stricter about the format, but does not detect holes,
overlapping UV charts or inverted normal maps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy import ndimage

from threedgen.export.asset import MIN_LOD_TEXTURE, ExportedAsset
from threedgen.export.options import AssetConfig
from threedgen.export.shape.topology import area_vectors, degenerate, pieces, signed_volume, topology, weld
from threedgen.export.shape.unwrap import OVERLAP, covering_faces, density, overlap
from threedgen.run.arrays import Array

from .glb_reader import Glb, GlbError, read_glb

FILE_SIZE = 3.0
"""Maximum size in MB of a GLB with textures of up to 1024 x 1024 texels. For larger textures, the maximum grows in
proportion to the number of texels."""
MEGABYTE = 1 << 20
FEW_TRIANGLES = 3000
"""Triangle count below which up to MAX_CROWDED non-manifold edges are only a warning, because thin parts need them."""
MAX_CROWDED = 10
MIN_COVERAGE, DENSITY_RANGE, MAX_CHARTS, MIN_GAP = 0.35, (0.7, 1.4), 400, 2
"""Limits of a good UV layout: minimum coverage, range of texel density / median, maximum number of charts, minimum
distance between charts in texels."""
MAX_HULL_VERTICES, MAX_HULL_OFFSET = 130, 0.05
"""Limits of a collider: maximum vertices per part, and maximum distance between the bounding boxes of collider and
asset, as a fraction of the asset's size."""


Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Problem of a file: whether the asset is broken or could only be better, a code for its kind, and a message."""

    severity: Severity  # "error" if the asset is broken, "warning" if it could be better
    code: str  # identifier of the kind of problem
    message: str  # sentence for the user


error, warning = partial(Finding, "error"), partial(Finding, "warning")


@dataclass(frozen=True)
class Expected:
    """Expected properties of a GLB, such as its height and maximum number of triangles. None: not checked."""

    triangles: int | None = None  # maximum number
    texture: int | None = None  # texture edge in texels
    height: float | None = None  # metres
    megabytes: float = 3.0  # maximum file size
    gltf_extras: tuple[str, ...] = ()  # required keys of the glTF extras
    layout: bool = True  # whether UV layout and pivot are checked; coarser levels of detail share those of the finest
    scene: bool = False  # whether the mesh is a scene, which may be open, off the ground, and have many charts


@dataclass(frozen=True)
class Layout:
    """Quality metrics of a UV layout: coverage, overlap, texel density, and number and smallest gap of the charts."""

    coverage: float  # fraction of texels covered by charts
    overlap: float  # fraction of covered texels that are covered twice
    density: tuple[float, float]  # 5th and 95th percentile of texels per unit length, each divided by the median
    charts: int  # number of charts
    gap: float  # smallest distance between texel centres of two charts, in texels; inf for one chart


def layout(vertices: Array, faces: Array, uv: Array, size: int) -> Layout:
    """Measure a UV layout in a square texture with an edge of `size` texels.

    `vertices` (V, 3) are stored once per side of a UV seam, `faces` are (F, 3), and `uv` (V, 2) is in [0, 1] with v
    upwards.
    """
    first, last = covering_faces(uv, faces, size)
    covered, chart = first >= 0, pieces(faces, len(vertices))
    return Layout(
        coverage=float(covered.mean()),
        overlap=overlap(first, last),
        density=density(vertices, faces, uv),
        charts=int(chart.max(initial=-1)) + 1,
        gap=gap(np.where(covered, chart[first], -1)),
    )


def gap(chart: Array) -> float:
    """Return the smallest distance between texels of two charts, in texels; inf for fewer than two charts.

    `chart` (H, W) is the chart number of each texel, -1 for a texel without a chart.
    """
    if len(np.unique(chart[chart >= 0])) < 2:
        return float("inf")
    distance, nearest = ndimage.distance_transform_edt(chart < 0, return_indices=True)
    owner = chart[tuple(nearest)]
    smallest = np.inf
    for axis in (0, 1):  # at the border of two charts' Voronoi cells, the gap is the sum of both distances
        a, b = (np.moveaxis(owner, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        near = [np.moveaxis(distance, axis, 0)[part] for part in (slice(None, -1), slice(1, None))]
        border = a != b
        if border.any():
            smallest = min(smallest, float((near[0] + near[1])[border].min()) + 1)
    return smallest


def check_asset(asset: ExportedAsset, config: AssetConfig) -> dict[str, list[Finding]]:
    """Return file name -> problems for the GLB of every level of detail, and of the collider if it is a convex hull.

    `config` has the options with which the asset was exported.
    """
    findings, colliders, metadata = {}, {}, ("triangles", "preset")
    for number, title in enumerate(config.titles(asset.name)):
        first = number == 0
        expected = Expected(
            triangles=asset.figures["budget"] if first else None,
            texture=max(config.sizes.texture >> number, min(config.sizes.texture, MIN_LOD_TEXTURE)),
            height=config.height if first else None,
            megabytes=FILE_SIZE * max(1.0, (config.sizes.texture / 1024) ** 2),
            gltf_extras=metadata,
            layout=first,
        )
        findings[f"{title}.glb"] = check_glb(asset.files[f"{title}.glb"], expected)
    if config.collision == "hull":
        mesh = read_glb(asset.files[f"{asset.name}.glb"]).attributes["POSITION"]
        colliders = {name: read_glb(data) for name, data in asset.files.items() if "_collision_" in name}
        for name, part in colliders.items():
            findings[name] = check_collider([(part.attributes["POSITION"], part.faces)], mesh)
    return findings


def check_glb(data: bytes, expected: Expected = Expected()) -> list[Finding]:  # noqa: B008  frozen
    """Return all problems of a textured GLB, given as bytes. An empty list means that the file is valid."""
    try:
        glb = read_glb(data)
    except GlbError as problem:
        return [error("file", str(problem))]
    findings = [*_file(glb, data, expected)]
    if "POSITION" not in glb.attributes or not len(glb.faces):
        return [*findings, error("empty", "the file holds no triangles")]
    bad = [name for name, values in glb.attributes.items() if not np.isfinite(values).all()]
    if bad:
        return [*findings, error("finite", f"values of {', '.join(bad)} are not finite")]
    if int(glb.faces.max()) >= len(glb.attributes["POSITION"]):
        return [*findings, error("indices", "a face index is out of range")]
    checks = _body, _faces, _place, _directions, _uv, _maps
    return findings + [finding for check in checks for finding in check(glb, expected)]


def _file(glb: Glb, data: bytes, expected: Expected) -> Iterator[Finding]:
    for problem in glb.problems:
        yield error("format", problem)
    if len(data) > expected.megabytes * MEGABYTE:
        size = len(data) / MEGABYTE
        yield warning("size", f"the file has {size:.1f} MB, more than {expected.megabytes:g} MB")
    for name in ("POSITION", "NORMAL", "TANGENT", "TEXCOORD_0"):
        if name not in glb.attributes:
            yield error("attributes", f"the mesh has no {name}")
    missing = [key for key in expected.gltf_extras if key not in glb.gltf_extras]
    if missing:
        yield error("extras", f"the extras lack {', '.join(missing)}")


def _body(glb: Glb, expected: Expected) -> Iterator[Finding]:
    if expected.scene:
        return
    vertices, faces, _ = weld(glb.attributes["POSITION"], glb.faces)
    mesh = topology(vertices, faces)
    tolerated = len(faces) < FEW_TRIANGLES and mesh.non_manifold_edges <= MAX_CROWDED
    counts: list[tuple[Severity, str, int, str]] = [
        ("error", "open", mesh.open_edges, "edges have one face: the surface has holes"),
        ("warning" if tolerated else "error", "crowded", mesh.non_manifold_edges, "edges have more than two faces"),
        ("error", "winding", mesh.inconsistent_edges, "edges join faces with opposite winding"),
    ]
    for severity, code, count, problem in counts:
        if count:
            yield Finding(severity, code, f"{count} {problem}")
    if mesh.volume <= 0:
        yield error("inside-out", "the faces point inwards")


def _faces(glb: Glb, expected: Expected) -> Iterator[Finding]:
    flat = int(degenerate(glb.attributes["POSITION"], glb.faces).sum())
    unused = len(glb.attributes["POSITION"]) - len(np.unique(glb.faces))
    if flat:
        yield warning("degenerate", f"{flat} triangles have no area")
    if unused:
        yield warning("unused", f"{unused} vertices belong to no face")
    if expected.triangles is not None and len(glb.faces) > expected.triangles:
        yield error("budget", f"{len(glb.faces)} triangles, more than the budget of {expected.triangles}")


def _place(glb: Glb, expected: Expected) -> Iterator[Finding]:
    low, high = glb.attributes["POSITION"].min(axis=0), glb.attributes["POSITION"].max(axis=0)
    tolerance = 1e-4 * max(float((high - low).max()), 1e-30)
    offset = max(abs(float(low[1])), abs(float(low[0] + high[0])) / 2, abs(float(low[2] + high[2])) / 2)
    if expected.height is not None and abs(float(high[1] - low[1]) - expected.height) > 1e-4 * expected.height:
        yield error("height", f"{high[1] - low[1]:.4g} m high instead of {expected.height:g}")
    if expected.layout and not expected.scene and offset > tolerance:
        yield error("pivot", f"the origin is {offset:.3g} m from the bottom centre")


def _directions(glb: Glb, expected: Expected) -> Iterator[Finding]:
    normal, tangent = glb.attributes.get("NORMAL"), glb.attributes.get("TANGENT")
    if normal is None:
        return
    if np.abs(np.linalg.norm(normal, axis=1) - 1).max() > 1e-3:
        yield error("normals", "normals do not have length 1")
    outward = area_vectors(glb.attributes["POSITION"], glb.faces)
    agree = (outward * normal[glb.faces].mean(axis=1)).sum(axis=1) >= 0
    if agree.mean() < 0.99:
        yield error("normals", f"{1 - agree.mean():.0%} of the normals point inwards")
    if tangent is None:
        return
    if np.abs(np.linalg.norm(tangent[:, :3], axis=1) - 1).max() > 1e-3:
        yield error("tangents", "tangents do not have length 1")
    if not np.isin(tangent[:, 3], (-1, 1)).all():
        yield error("tangents", "the sign of a tangent is neither 1 nor -1")
    if np.abs((tangent[:, :3] * normal).sum(axis=1)).max() > 1e-2:
        yield error("tangents", "tangents are not perpendicular to the normals")
    wrong = _wrong_signs(glb)
    if wrong > 0.02:
        yield error(
            "tangents", f"{wrong:.0%} of the faces have tangents with the wrong sign: normal maps look inverted"
        )


def _wrong_signs(glb: Glb) -> float:
    """Return the area fraction of faces whose tangent sign contradicts the winding of their UVs, with v upwards."""
    if "TEXCOORD_0" not in glb.attributes:
        return 0.0
    uv = glb.attributes["TEXCOORD_0"][glb.faces].astype(np.float64)
    d = uv[:, 1:] - uv[:, :1]
    winding = -(d[:, 0, 0] * d[:, 1, 1] - d[:, 0, 1] * d[:, 1, 0])  # negative: glTF's v runs downwards
    area = np.linalg.norm(area_vectors(glb.attributes["POSITION"], glb.faces), axis=1)
    sign = glb.attributes["TANGENT"][glb.faces, 3].sum(axis=1)
    wrong = (np.sign(sign) * np.sign(winding) < 0) & (np.abs(sign) == 3)
    return float(area[wrong].sum() / max(area.sum(), 1e-30))


def _uv(glb: Glb, expected: Expected) -> Iterator[Finding]:
    uv = glb.attributes.get("TEXCOORD_0")
    if uv is None:
        return
    if uv.min() < 0 or uv.max() > 1:
        yield error("uv-range", f"UVs range from {uv.min():.3g} to {uv.max():.3g}, outside [0, 1]")
        return
    if not expected.layout:
        return
    size = expected.texture or max((max(pixels.shape[:2]) for pixels in glb.images.values()), default=1024)
    uvs = layout(glb.attributes["POSITION"], glb.faces, uv * (1, -1) + (0, 1), size)
    if uvs.overlap > OVERLAP:
        yield error("uv-overlap", f"{uvs.overlap:.2%} of the covered texels are shared by two surface points")
    low, high = uvs.density
    for wrong, text in (
        (uvs.coverage < MIN_COVERAGE, f"only {uvs.coverage:.0%} of the texture is used"),
        (
            low < DENSITY_RANGE[0] or high > DENSITY_RANGE[1],
            f"texel density ranges from {low:.2f} to {high:.2f} of its median",
        ),
        (uvs.charts > MAX_CHARTS and not expected.scene, f"the texture has {uvs.charts} UV charts"),
        (uvs.gap < MIN_GAP, f"two UV charts are only {uvs.gap:.1f} texels apart, so their colours mix"),
    ):
        if wrong:
            yield warning("uv-layout", text)


def _maps(glb: Glb, expected: Expected) -> Iterator[Finding]:
    if "baseColorTexture" not in glb.images:
        yield error("maps", "the material has no base colour texture")
    for name, pixels in glb.images.items():
        height, width = pixels.shape[:2]
        if height != width or (expected.texture and height != expected.texture):
            problem = f" instead of {expected.texture} x {expected.texture}" if expected.texture else ", not square"
            yield error("maps", f"the {name} has {width} x {height} texels{problem}")
    normal = glb.images.get("normalTexture")
    if normal is not None and normal[..., 2].mean() < 0.8 * 255:
        blue = normal[..., 2].mean() / 255
        yield warning("maps", f"the normal map's mean blue is {blue:.2f}: it does not point outwards")


def check_collider(parts: list[tuple[Array, Array]], mesh: Array) -> list[Finding]:
    """Return the problems of a collider: open parts, many vertices, or bounds that differ from the asset's.

    `parts` has the vertices (N, 3) and faces (F, 3) of each convex part, and `mesh` the vertices (V, 3) of the asset.
    """
    findings = []
    for number, (vertices, faces) in enumerate(parts):
        if not topology(vertices, faces).manifold or signed_volume(vertices, faces) <= 0:
            findings.append(error("collider", f"collision shape {number} is not closed"))
        if len(vertices) > MAX_HULL_VERTICES:
            text = f"collision shape {number} has {len(vertices)} vertices, more than {MAX_HULL_VERTICES}"
            findings.append(warning("collider", text))
    points = np.concatenate([vertices for vertices, _ in parts])
    size = np.ptp(mesh, axis=0)
    offset = max(
        np.abs(points.min(axis=0) - mesh.min(axis=0)).max(), np.abs(points.max(axis=0) - mesh.max(axis=0)).max()
    )
    if offset > MAX_HULL_OFFSET * size.max():
        text = f"the collider's bounds differ from the asset's by {offset / size.max():.0%} of its size"
        findings.append(warning("collider", text))
    return findings
