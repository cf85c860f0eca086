import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import marching_cubes

from tests.support.errors import refused
from threedgen.export.shape import simplify as simplify_module
from threedgen.export.shape import unwrap as unwrap_module
from threedgen.export.shape.simplify import simplify, simplify_level
from threedgen.export.shape.topology import compact, pieces, topology, weld
from threedgen.export.shape.unwrap import UnwrapError, covering_faces, overlap, unwrap

BOX = trimesh.creation.box()


def bodies(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a closed mesh of several parts with a handle: random balls and a torus, by marching cubes."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, 22)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    tube = 0.18 - np.hypot(np.hypot(x, y) - 0.55, z)
    inside = tube
    for _ in range(3):
        centre, radius = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.2, 0.4)
        inside = np.maximum(inside, radius - np.sqrt(((np.stack([x, y, z], -1) - centre) ** 2).sum(-1)))
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = -1
    vertices, faces, _, _ = marching_cubes(inside, 0.0, gradient_direction="ascent", allow_degenerate=False)
    return vertices.astype(np.float32), faces.astype(np.int32)


def test_topology_of_boxes_and_of_broken_boxes() -> None:
    points, faces = np.asarray(BOX.vertices), np.asarray(BOX.faces)
    topo = topology(points, faces)
    assert topo.solid and topo.parts == 1
    assert topo.volume == pytest.approx(1)
    assert topology(points, faces[1:]).open_edges == 3 and not topology(points, faces[1:]).manifold
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert topology(points, flipped).inconsistent_edges == 3
    assert topology(points, faces[:, ::-1]).volume == pytest.approx(-1) and not topology(points, faces[:, ::-1]).solid
    fin = np.concatenate([faces, [[faces[0, 0], faces[0, 1], 7]]])
    assert topology(points, fin).non_manifold_edges >= 1
    squashed = points.copy()
    squashed[faces[0, 0]] = squashed[faces[0, 1]]
    assert topology(squashed, faces).degenerate >= 1
    assert set(vars(topology(points, faces[:0])).values()) == {0} and not topology(points, faces[:0]).solid
    both = np.concatenate([points, points + 3]), np.concatenate([faces, faces + 8])
    assert topology(*both).parts == 2
    hollow = np.concatenate([points, points / 2]), np.concatenate([faces, faces[:, ::-1] + 8])
    assert topology(*hollow).parts == 2 and topology(*hollow).volume == pytest.approx(1 - 1 / 8)


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), share=st.floats(0.3, 0.9))
def test_simplify_keeps_budget_and_topology(seed: int, share: float) -> None:
    points, faces = bodies(seed)
    before, budget = topology(points, faces), int(share * len(faces))
    vertices, fewer = simplify(points, faces, budget)
    after = topology(vertices, fewer)
    assert 0.95 * budget <= len(fewer) <= budget
    assert after.solid >= before.solid and after.manifold and after.parts == before.parts
    assert after.volume == pytest.approx(before.volume, rel=0.03)
    assert len(np.unique(fewer)) == len(vertices) and vertices.dtype == np.float32
    euler = len(vertices) - len(fewer) // 2
    assert euler == len(points) - len(faces) // 2, "the genus changed"
    again = simplify(points, faces, budget)
    assert np.array_equal(again[0], vertices) and np.array_equal(again[1], fewer)


def test_simplify_rejects_broken_library_results(monkeypatch: pytest.MonkeyPatch) -> None:
    points, faces = bodies(4)
    targets: list[int] = []

    def leave_holes(vertices: np.ndarray, triangles: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
        targets.append(target)
        return vertices, triangles[: target - 1]

    monkeypatch.setattr(simplify_module, "_library", leave_holes)
    vertices, fewer = simplify(points, faces, 300)
    assert targets and topology(vertices, fewer).solid and 295 <= len(fewer) <= 300


def test_simplify_level_keeps_charts_and_uv_orientation() -> None:
    """A chart may be mirrored, but all its faces have the same orientation."""
    mesh, charts = unwrap(*simplify(*bodies(3), 600), 256)
    for budget in (450, 250):
        coarse = simplify_level(mesh, budget)
        sides, chart = np.sign(uv_areas(coarse.uv, coarse.faces)), pieces(coarse.faces, len(coarse.uv))
        assert len(coarse.faces) == budget and len(np.unique(chart)) == charts
        assert all(len(np.unique(sides[chart == k])) == 1 for k in np.unique(chart))
        assert topology(*weld(coarse.vertices, coarse.faces)[:2]).solid


def test_levels_of_detail_stand_on_the_same_ground() -> None:
    # small feet under a block, two of them in the middle: the cheapest collapses would remove them
    places = [(x, y) for x in (-0.4, 0.0, 0.4) for y in (-0.2, 0.2)]
    feet = [trimesh.creation.icosphere(2, 0.06).apply_translation((x, y, 0.06)) for x, y in places]
    block = trimesh.creation.icosphere(4, 0.5).apply_translation((0, 0, 0.6))
    joined = trimesh.util.concatenate([block, *feet])
    mesh, _ = unwrap(joined.vertices.astype(np.float32), joined.faces.astype(np.int32), 256)
    coarse = simplify_level(mesh, 250)
    assert len(coarse.faces) < len(mesh.faces) / 5
    assert np.allclose(np.ptp(coarse.vertices, axis=0), np.ptp(mesh.vertices, axis=0), atol=1e-6)
    ground = coarse.vertices[coarse.vertices[:, 2] < 0.01]
    assert {(round(x / 0.4), round(y / 0.2)) for x, y, _ in ground} == {(x, y) for x in (-1, 0, 1) for y in (-1, 1)}


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_unwrap_keeps_the_surface_and_fills_the_texture(seed: int, scale: float) -> None:
    points, faces = simplify(*bodies(seed), 600)
    mesh, charts = unwrap(points * np.float32(scale), faces, 256)
    assert np.array_equal(mesh.vertices[mesh.faces], (points * np.float32(scale))[faces])
    assert 0 < charts <= len(faces)
    assert topology(*weld(mesh.vertices, mesh.faces)[:2]).solid
    assert mesh.uv.min() >= 0 and 0.9 < mesh.uv.max() <= 1 and mesh.uv.dtype == np.float32
    uv_area = np.abs(uv_areas(mesh.uv, mesh.faces)) / 2
    triangles = points[faces].astype(float)
    outward = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = np.linalg.norm(outward, axis=1) / 2
    assert 0.2 < uv_area.sum() < 1
    density = np.sqrt(uv_area / area)[area > np.median(area) / 10]
    assert np.quantile(density, 0.1) > 0.6 * np.median(density)
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    facing = (mesh.normals[mesh.faces].mean(1) * outward).sum(1) > 0
    assert facing.mean() > 0.99, "only at sharp folds may vertex normals point away from their face"


def test_unwrap_gives_small_triangles_a_place() -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    points = np.concatenate([square, square * 4e-4 + np.float32([0.2, 0.3, 0.1])])
    mesh, _ = unwrap(points, np.concatenate([faces, faces + 4]), 256)
    assert np.abs(uv_areas(mesh.uv, mesh.faces)).min() > 0


def test_unwrap_of_a_smooth_surface_with_many_triangles() -> None:
    """xatlas ends with a segmentation fault for this ball in one piece."""
    ball = trimesh.creation.icosphere(subdivisions=6)
    mesh, charts = unwrap(ball.vertices.astype(np.float32), ball.faces.astype(np.int32), 512)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], ball.vertices.astype(np.float32)[ball.faces])
    assert overlap(*covering_faces(mesh.uv, mesh.faces, 512)) < 1e-3 and 8 <= charts < 100


def test_unwrap_separates_stacked_surfaces() -> None:
    """A floor, half of it covered by a second one that shares a line of vertices."""
    points, floor = sheet(7)
    half = floor[points[floor][..., 0].max(axis=1) <= 0]
    upper = np.arange(len(points)) + len(points)
    line = np.abs(points[:, 0]) < 0.3  # inner points are slightly displaced
    upper[line] = np.flatnonzero(line)
    faces = np.concatenate([floor, upper[half]])
    faces = faces[np.unique(np.sort(faces, axis=1), axis=0, return_index=True)[1]]
    points, faces, _ = compact(np.concatenate([points, points]).astype(np.float32), faces)
    costs, layer = unwrap_module.CHART_COSTS, np.zeros(len(faces), int)
    one_layer, _ = unwrap_module._unwrap_layers(points, faces, 256, costs[0], layer)
    assert overlap(*covering_faces(one_layer.uv, one_layer.faces, 256)) > 0.1
    mesh, _ = unwrap(points, faces, 256)
    assert overlap(*covering_faces(mesh.uv, mesh.faces, 256)) == 0
    assert np.array_equal(mesh.vertices[mesh.faces], points[faces]), "same triangles in the same order"


@pytest.mark.parametrize("points", [np.zeros((3, 3), np.float32), np.full((3, 3), np.nan, np.float32)])
def test_unwrap_refuses_degenerate_surfaces(points: np.ndarray) -> None:
    with refused(kind=UnwrapError):
        unwrap(points, np.array([[0, 1, 2]], np.int32), 256)


def sheet(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a flat grid of size x size vertices, spacing 1, centred at 0, rows from right to left, inner ones slightly
    displaced: vertices (V, 3), faces (F, 3) facing up."""
    half, rng = size // 2, np.random.default_rng(0)
    points = np.array([(half - k % size, k // size - half, 0.0) for k in range(size * size)])
    inside = np.abs(points[:, :2]).max(axis=1) < half
    points[inside, :2] += rng.uniform(-0.2, 0.2, (inside.sum(), 2))
    first = np.array([k for k in range(size * (size - 1)) if k % size < size - 1])
    above = first + size
    faces = np.concatenate([np.stack(f, 1) for f in ((first + 1, first, above), (first + 1, above, above + 1))])
    return points, faces


def uv_areas(uv: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return twice the signed UV area of each face; negative: flipped."""
    a, b, c = (uv[corners[:, k]].astype(float) for k in range(3))
    return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
