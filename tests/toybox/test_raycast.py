"""Ray caster of the toybox compared with triangle meshes, and the solids themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from threedgen.geometry.poses import orbit_array
from threedgen.guidance.priors.mvadapter.cameras import views
from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import Spec
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM, PRISM, SPHERE, TORUS, Asset, inside, tessellate
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import Toybox, build, render_azimuths, toybox_mesh

SOLIDS = {
    "sphere": (SPHERE, 1.0),
    "box": (BOX, 1.0),
    "cylinder": (FRUSTUM, 1.0),
    "cone": (FRUSTUM, 0.0),
    "frustum": (FRUSTUM, 0.4),
    "flowerpot": (FRUSTUM, 1.6),
    "torus": (TORUS, 0.25),
    "dome": (DOME, 1.0),
    "prism": (PRISM, 1.0),
}
STRETCHES = {"even": (1.0, 1.0, 1.0), "flat": (1.0, 0.5, 0.2), "long": (0.3, 0.4, 1.0)}
SINGLE_SOLIDS = [(name, stretch) for name in SOLIDS for stretch in STRETCHES]


def one_solid(name: str, stretch: str) -> Asset:
    """Return a rotated and stretched solid as an asset."""
    kind, param = SOLIDS[name]
    builder = Builder(np.random.default_rng(0), (0.5, 0.5, 0.5))
    builder.add(kind, (0.1, 0.2, 0.3), STRETCHES[stretch], rotate=(30, 50, 70), param=param)
    return Asset(builder.finish(1.0), "", "", "", "", "", "", "", False, labels=("body",))


def cameras(azimuths: list[float], fov: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    azimuth = np.deg2rad(azimuths)
    c2w = orbit_array(np.full_like(azimuth, 0.35), azimuth, np.full_like(azimuth, 2.6))
    return c2w, np.full(len(azimuth), fov)


def directions(c2w: np.ndarray, fov: np.ndarray, size: int) -> np.ndarray:
    """Return unit rays (V, H, W, 3) through the pixel centres, implemented independently."""
    centre = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(centre, -centre)
    half = np.tan(fov / 2)[:, None, None]
    local = np.stack([half * x, half * y, np.full((len(c2w), size, size), -1.0)], -1)
    world = np.einsum("vij,vhwj->vhwi", c2w[:, :3, :3].astype(float), local)
    return world / np.linalg.norm(world, axis=-1, keepdims=True)


def cast(
    vertices: np.ndarray, faces: np.ndarray, origin: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersect rays (N, 3) with all triangles (Moeller and Trumbore 1997).

    Returns distances (N, F), inf on a miss; whether the ray enters (N, F); unit normals (F, 3).
    """
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    edge, side = b - a, c - a
    normal = np.cross(edge, side)
    o, d = origin[:, None], rays[:, None]
    p = np.cross(d, side)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / (p * edge).sum(-1)
        u = ((o - a) * p).sum(-1) * scale
        q = np.cross(o - a, edge)
        v = (d * q).sum(-1) * scale
        t = (side * q).sum(-1) * scale
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & np.isfinite(scale)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return np.where(hit, t, np.inf), (d * normal).sum(-1) < 0, normal / np.maximum(length, 1e-30)


def mesh_gbuffer(
    asset: Asset, origin: np.ndarray, rays: np.ndarray, segments: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return depth (N,), normal (N, 3) and label (N,) of the first hits, solid by solid to save time."""
    depth, normal, label = np.full(len(rays), np.inf), np.zeros((len(rays), 3)), np.zeros(len(rays), int)
    for solid in asset.primitives:
        vertices, faces, _, labels = replace(asset, primitives=(solid,)).mesh(segments)
        reach = np.linalg.norm(vertices - solid.centre, axis=1).max()
        to = solid.centre - origin
        gap = np.linalg.norm(to - (to * rays).sum(1, keepdims=True) * rays, axis=1)
        near = np.flatnonzero(gap <= reach)
        if not len(near):
            continue
        t, _, normals = cast(vertices, faces, origin[near], rays[near])
        first = t.argmin(1)
        t = t[np.arange(len(near)), first]
        better = t < depth[near]
        depth[near[better]], normal[near[better]] = t[better], normals[first[better]]
        label[near[better]] = labels[0]
    return depth, normal, label


def compare(asset: Asset, size: int, azimuths: list[float], segments: int, tolerance: float) -> None:
    """Compare the G-buffer of the ray caster with that of the mesh; ``tolerance``: depth error of the facets."""
    c2w, fov = cameras(azimuths)
    result = render([asset], np.zeros(len(c2w), int), c2w, fov, size, with_gbuffer=True)
    rays = directions(c2w, fov, size)
    origin = np.broadcast_to(c2w[:, None, None, :3, 3], rays.shape).astype(float)
    depth, normal, label = mesh_gbuffer(asset, origin.reshape(-1, 3), rays.reshape(-1, 3), segments)
    mesh_mask, mask = np.isfinite(depth), result.mask.ravel()
    both = mesh_mask & mask
    assert both.sum() > 30
    assert (mesh_mask != mask).sum() <= 0.02 * both.sum(), "the silhouettes differ"
    assert (label[both] != result.label.ravel()[both]).mean() <= 0.02
    error = np.abs(depth[both] - result.depth.ravel()[both])
    assert np.median(error) < tolerance and np.quantile(error, 0.95) < 4 * tolerance
    cosine = (normal * result.normal.reshape(-1, 3)).sum(1)[both]
    assert np.median(cosine) > 0.99 and np.quantile(cosine, 0.05) > 0.95
    assert np.array_equal(np.isfinite(result.depth), result.mask)
    assert np.allclose(np.linalg.norm(result.normal[result.mask], axis=-1), 1, atol=1e-5)
    assert (result.normal * rays).sum(-1)[result.mask].max() < 1e-3, "a normal faces away from the camera"


@pytest.mark.parametrize(("name", "stretch"), SINGLE_SOLIDS)
def test_render_of_single_solids_matches_their_mesh(name: str, stretch: str) -> None:
    compare(one_solid(name, stretch), 20, [10.0, 130.0, 250.0], 48, tolerance=0.004)


@pytest.mark.parametrize(("noun", "part"), [("dog", "hat"), ("car", "wheels"), ("castle", "flag"), ("drum", "")])
def test_render_of_assets_matches_their_mesh(noun: str, part: str) -> None:
    asset = build(Spec(noun, "blue", "large", part, "red"), np.random.default_rng(1))
    compare(asset, 28, [20.0], 24, tolerance=0.006)


@pytest.mark.parametrize("name", SOLIDS)
def test_solid_meshes_are_closed_and_face_outwards(name: str) -> None:
    kind, param = SOLIDS[name]
    mesh = trimesh.Trimesh(*tessellate(kind, param, 32))
    assert mesh.is_watertight and mesh.is_winding_consistent
    frustum = (1 + param + param**2) / 3 * np.pi * 2  # of height 2
    exact = {
        SPHERE: 4 / 3 * np.pi, BOX: 8.0, FRUSTUM: frustum, DOME: 2 / 3 * np.pi, PRISM: 4.0,
        TORUS: 2 * np.pi**2 * (1 - param) * param**2,
    }  # fmt: skip
    assert exact[kind] * 0.95 < mesh.volume <= exact[kind] * 1.0001
    wide = max(1.0, param)  # only a frustum may exceed the unit cube
    assert np.all(np.abs(mesh.vertices).max(0) <= np.array([wide, wide, 1.0]) + 1e-9)


@pytest.mark.parametrize(("name", "stretch"), SINGLE_SOLIDS)
def test_inside_matches_the_mesh(name: str, stretch: str) -> None:
    """Count crossings: a ray from inside leaves a closed mesh once more than it enters."""
    asset = one_solid(name, stretch)
    vertices, faces, _, _ = asset.mesh(48)
    rng = np.random.default_rng(2)
    low, high = vertices.min(0), vertices.max(0)
    points = rng.uniform(low - 0.05, high + 0.05, (300, 3))
    t, entering, _ = cast(vertices, faces, points, np.broadcast_to([0.36, 0.48, 0.8], points.shape))
    depth = np.where(np.isfinite(t), np.where(entering, -1, 1), 0).sum(1)
    within = inside(asset.primitives, points)
    assert ((depth > 0) == within).mean() > 0.97
    assert 0.02 < within.mean() < 0.98


def test_inside_is_the_union_of_the_solids() -> None:
    asset = build(Spec("dog", "blue", "large", "hat", "red"), np.random.default_rng(1))
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (4000, 3))
    within = inside(asset.primitives, points)
    assert np.array_equal(within, np.any([inside((solid,), points) for solid in asset.primitives], 0))
    assert 0.02 < within.mean() < 0.5
    assert inside(asset.primitives, np.stack([p.centre for p in asset.primitives if p.kind == SPHERE])).all()


def test_mirrored_solid_mesh_faces_outwards() -> None:
    solid = one_solid("cone", "long").primitives[0]
    mirrored = replace(solid, matrix=solid.matrix @ np.diag([1.0, -1.0, 1.0]))
    asset = replace(one_solid("cone", "long"), primitives=(mirrored,))
    vertices, faces, _, _ = asset.mesh()
    assert trimesh.Trimesh(vertices, faces).volume > 0


def test_mesh_has_colours_and_labels() -> None:
    asset = build(Spec("car", "blue", "", "wheels", "red"), np.random.default_rng(0))
    vertices, faces, colours, labels = asset.mesh()
    assert len(faces) == len(colours) == len(labels) and faces.max() == len(vertices) - 1
    wheels = labels == asset.labels.index("wheels") + 1
    assert wheels.any() and np.unique(labels).min() == 1 and labels.max() == len(asset.labels)
    reds = colours[wheels]
    assert (reds[:, 0] > 2 * reds[:, 2]).any()


def test_render_without_gbuffer_has_the_same_rgb_only() -> None:
    asset = build(Spec("duck", "yellow"), np.random.default_rng(0))
    plain, full = (render_azimuths(asset, [30.0, 120.0], 24, with_gbuffer=flag) for flag in (False, True))
    assert np.array_equal(plain.rgb, full.rgb) and plain.rgb.min() >= 0 and plain.rgb.max() <= 1
    assert plain.depth.size == plain.label.size == plain.normal.size == plain.mask.size == 0
    far = ~full.mask
    assert np.all(full.depth[far] == np.inf) and not full.normal[far].any() and not full.label[far].any()


def test_render_uses_asset_camera_and_background_of_each_view() -> None:
    box = Toybox(0)
    assets, c2w, fov = [box.asset(1), box.asset(2)], *cameras([20.0, 200.0, 75.0])
    owner, grey = np.array([1, 0, 1]), np.array([0.2, 0.5, 0.9])
    together = render(assets, owner, c2w, fov, 24, grey)
    for v in range(3):
        single = render([assets[owner[v]]], np.zeros(1, int), c2w[v : v + 1], fov[v : v + 1], 24, grey[v])
        assert np.array_equal(single.rgb[0], together.rgb[v])
        assert np.allclose(together.rgb[v, 0, 0], grey[v], atol=1e-6)


def test_supersampling_averages_subpixels() -> None:
    asset = one_solid("box", "even")
    c2w, fov = cameras([33.0])
    fine = render([asset], np.zeros(1, int), c2w, fov, 96, supersample=1).rgb
    expected = fine.reshape(1, 24, 4, 24, 4, 3).mean((2, 4))
    one, sixteen = (render([asset], np.zeros(1, int), c2w, fov, 24, supersample=s).rgb for s in (1, 4))
    assert np.abs(sixteen - expected).mean() < 1e-5 < np.abs(one - expected).mean()


def test_orthographic_render_matches_the_mesh() -> None:
    asset = build(Spec("car", "red", "", "wheels", "black"), np.random.default_rng(0))
    at = views([(0.0, 30.0), (89.99, 180.0), (-30.0, 200.0)], 64, 64)
    half_height = np.full(3, 0.55)
    small = asset.move_and_scale(0.0, 0.5 / 0.85)
    result = render([small], np.zeros(3, int), at.c2w.numpy(), half_height, 64, with_gbuffer=True, parallel=True)
    mesh = toybox_mesh(small, 48)
    points, normals, mask = mesh.surface(at)
    both = result.mask & mask
    assert (result.mask != mask).mean() < 0.01 and both.mean() > 0.1
    depth = torch.from_numpy(np.where(both, result.depth, 0))
    origins, directions = at.rays()
    apart = np.linalg.norm((origins + directions * depth[..., None]).numpy() - points, axis=-1)[both]
    assert np.median(apart) < 2e-3 and (apart > 0.02).mean() < 0.02
    assert np.median((result.normal * normals).sum(-1)[both]) > 0.99
    assert np.abs(result.rgb - mesh.photograph(at, light=True)).mean() < 0.01
