"""Fewer triangles, texture coordinates: what a mesh must still be afterwards, and how a fault would show."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import marching_cubes

from threedgen.config.errors import ConfigError
from threedgen.export.shape import collapse as collapsing
from threedgen.export.shape import simplify as simplifying
from threedgen.export.shape.collapse import collapse
from threedgen.export.shape.simplify import BudgetTooSmall, level, simplify
from threedgen.export.shape.topology import compact, pieces, topology, weld
from threedgen.export.shape.unwrap import UnwrapError, padding, unwrap
from threedgen.export.shape.uv_layout import claims, overlap

BOX = trimesh.creation.box()


def bodies(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The union of a few random balls and a torus, by marching cubes: closed, of several parts and with a hole."""
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


# ---------------------------------------------------------------- topology


def test_a_box_is_a_solid_and_every_fault_is_counted() -> None:
    points, faces = np.asarray(BOX.vertices), np.asarray(BOX.faces)
    found = topology(points, faces)
    assert found.solid and (found.triangles, found.vertices, found.parts) == (12, 8, 1)
    assert found.volume == pytest.approx(1)
    assert topology(points, faces[1:]).open_edges == 3 and not topology(points, faces[1:]).manifold
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert topology(points, flipped).twisted_edges == 3
    assert topology(points, faces[:, ::-1]).volume == pytest.approx(-1) and not topology(points, faces[:, ::-1]).solid
    fin = np.concatenate([faces, [[faces[0, 0], faces[0, 1], 7]]])
    assert topology(points, fin).crowded_edges >= 1
    squashed = points.copy()
    squashed[faces[0, 0]] = squashed[faces[0, 1]]
    assert topology(squashed, faces).degenerate >= 1
    assert set(vars(topology(points, faces[:0])).values()) == {0} and not topology(points, faces[:0]).solid


def test_the_counts_do_not_depend_on_place_and_size() -> None:
    points, faces = bodies(1)
    usual, moved = topology(points, faces), topology(points.astype(float) * 1e-4 + 1, faces)
    assert replace(usual, volume=0) == replace(moved, volume=0)
    assert moved.volume == pytest.approx(usual.volume * 1e-12, rel=1e-3)


def test_two_bodies_are_two_parts_and_a_cavity_is_one_more() -> None:
    points, faces = np.asarray(BOX.vertices), np.asarray(BOX.faces)
    both = np.concatenate([points, points + 3]), np.concatenate([faces, faces + 8])
    assert topology(*both).parts == 2
    hollow = np.concatenate([points, points / 2]), np.concatenate([faces, faces[:, ::-1] + 8])
    assert topology(*hollow).parts == 2 and topology(*hollow).volume == pytest.approx(1 - 1 / 8)


def test_welding_undoes_a_split_and_compacting_drops_the_unused() -> None:
    points, faces = np.asarray(BOX.vertices, np.float32), np.asarray(BOX.faces)
    loose = points[faces].reshape(-1, 3), np.arange(36).reshape(-1, 3)
    assert topology(*loose).open_edges == 36
    places, joined, which = weld(*loose)
    assert topology(places, joined).solid and len(places) == 8
    assert np.array_equal(places[which], loose[0])
    few, named, kept = compact(points, faces[:1])
    assert len(few) == 3 and np.array_equal(few[named], points[faces[:1]]) and np.array_equal(points[kept], few)


# ---------------------------------------------------------------- simplification


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), share=st.floats(0.3, 0.9))
def test_a_budget_is_kept_and_the_body_stays_whole(seed: int, share: float) -> None:
    points, faces = bodies(seed)
    before, budget = topology(points, faces), int(share * len(faces))
    vertices, fewer = simplify(points, faces, budget)
    after = topology(vertices, fewer)
    assert 0.95 * budget <= len(fewer) <= budget
    assert after.solid >= before.solid and after.manifold and after.parts == before.parts
    assert after.volume == pytest.approx(before.volume, rel=0.03)
    assert after.vertices == len(vertices) and vertices.dtype == np.float32
    euler = len(vertices) - len(fewer) // 2
    assert euler == len(points) - len(faces) // 2, "a handle was lost or made"
    again = simplify(points, faces, budget)
    assert np.array_equal(again[0], vertices) and np.array_equal(again[1], fewer)


def test_what_fits_the_budget_is_not_touched() -> None:
    points, faces = bodies(2)
    vertices, same = simplify(points, faces, len(faces))
    assert vertices is points and same is faces


def test_a_budget_that_the_shape_does_not_allow_is_said_with_the_nearest() -> None:
    points, faces = bodies(3)
    with pytest.raises(BudgetTooSmall, match=r"^budget: should be at least \d+ triangles for this shape") as caught:
        simplify(points, faces, 4)
    assert isinstance(caught.value, ConfigError)
    possible = caught.value.possible
    assert 14 <= possible < 60  # a torus needs fourteen
    assert len(simplify(points, faces, possible)[1]) <= possible


def test_what_the_library_breaks_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library may stop above the target, or leave holes: then the careful collapses do the work."""
    points, faces = bodies(4)
    asked: list[int] = []

    def careless(vertices: np.ndarray, triangles: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(target)
        return vertices, triangles[: target - 1]

    monkeypatch.setattr(simplifying, "_library", careless)
    vertices, fewer = simplify(points, faces, 300)
    assert asked and topology(vertices, fewer).solid and 295 <= len(fewer) <= 300


def test_collapses_keep_flat_faces_flat() -> None:
    """On a finely divided box the planes cost nothing: the box is still the box with very few triangles."""
    fine = BOX.subdivide().subdivide().subdivide()
    fewer, _ = collapse(fine.vertices, fine.faces, 40)
    assert len(fewer) <= 40 and topology(fine.vertices, fewer).solid
    assert topology(fine.vertices, fewer).volume == pytest.approx(1, abs=1e-9)


def test_normals_and_slivers_of_single_faces() -> None:
    a, b, c = np.random.default_rng(0).normal(size=(3, 3))
    *normal, twice = collapsing._normal(a, b, c)
    assert np.allclose(normal, np.cross(b - a, c - a)) and twice == pytest.approx(np.linalg.norm(normal))
    corners = np.array([[0.0, 0, 0], [2, 0, 0], [1, 3**0.5, 0]])
    assert collapsing._shape(*corners, 2 * 3**0.5) == pytest.approx(3**0.5 / 2)
    assert collapsing._shape(a, a, a, 0.0) == 0, "a point is no face"


@pytest.mark.parametrize("seed", [3, 5])
def test_a_coarser_level_folds_no_texture_and_crosses_no_seam(seed: int) -> None:
    """A chart may be a mirror image, but all its faces are alike; there are as many charts as before."""
    made, charts = unwrap(*simplify(*bodies(seed), 600), 256)
    for budget in (450, 250):
        coarse = level(made, budget)
        corner, chart = coarse.uv[coarse.faces].astype(float), pieces(coarse.faces, len(coarse.uv))
        a, b = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
        sides = np.sign(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
        assert len(coarse.faces) == budget and len(np.unique(chart)) == charts
        assert all(len(np.unique(sides[chart == k])) == 1 for k in np.unique(chart))
        assert topology(*weld(coarse.vertices, coarse.faces)[:2]).solid


# ---------------------------------------------------------------- texture coordinates


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_unwrapping_keeps_the_surface_and_fills_a_square(seed: int, scale: float) -> None:
    points, faces = simplify(*bodies(seed), 600)
    made, charts = unwrap(points * np.float32(scale), faces, 256)
    assert np.array_equal(made.vertices[made.faces], (points * np.float32(scale))[faces])
    assert 0 < charts <= len(faces)
    assert topology(*weld(made.vertices, made.faces)[:2]).solid
    assert made.uv.min() >= 0 and 0.9 < made.uv.max() <= 1 and made.uv.dtype == np.float32
    corner = made.uv[made.faces].astype(float)
    a, b = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    flat = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    places = points[faces].astype(float)
    real = np.linalg.norm(np.cross(places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]), axis=1) / 2
    assert 0.2 < flat.sum() < 1
    density = np.sqrt(flat / real)[real > np.median(real) / 10]
    assert np.quantile(density, 0.1) > 0.6 * np.median(density), "some of the surface has far fewer texels"
    assert np.allclose(np.linalg.norm(made.normals, axis=1), 1, atol=1e-5)
    outward = np.cross(places[:, 1] - places[:, 0], places[:, 2] - places[:, 0])
    facing = (made.normals[made.faces].mean(1) * outward).sum(1) > 0
    assert facing.mean() > 0.99, "at sharp folds the normals of three corners may look away from their face"


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ((0.85, 1.2), (0.9, 1.1), 8.0),  # good enough: the second is not tried
        ((0.7, 1.1), (0.85, 1.1), 2.0),
        ((0.9, 1.4), (0.9, 1.2), 2.0),
        ((0.75, 1.1), (0.7, 1.1), 8.0),  # neither is: the better one
    ],
)
def test_uneven_texels_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, first: tuple[float, float], second: tuple[float, float], taken: float
) -> None:
    from threedgen.export.shape import unwrap as module

    evenness, tried = {8.0: first, 2.0: second}, []

    def attempt(vertices: object, faces: object, texture: int, cost: float) -> tuple[SimpleNamespace, int]:
        tried.append(cost)
        return SimpleNamespace(vertices=cost, faces=None, uv=None), 1

    monkeypatch.setattr(module, "_unwrap", attempt)
    monkeypatch.setattr(module, "density", lambda vertices, faces, uv: evenness[vertices])
    assert module.unwrap(np.zeros((3, 3)), np.zeros((1, 3), int))[0].vertices == taken
    assert tried == ([8.0] if first == (0.85, 1.2) else [8.0, 2.0])


def test_unwrapping_is_repeatable_and_seams_share_their_normals() -> None:
    points, faces = simplify(*bodies(5), 500)
    one, other = unwrap(points, faces, 512)[0], unwrap(points, faces, 512)[0]
    assert np.array_equal(one.uv, other.uv) and np.array_equal(one.vertices, other.vertices)
    normals = np.zeros((len(points), 3), np.float32)
    normals[faces] = one.normals[one.faces]
    assert np.array_equal(normals[faces], one.normals[one.faces]) and len(one.uv) > len(points)


def test_a_surface_that_lies_upon_itself_has_no_texel_twice() -> None:
    """A floor, and over half of it, from one of its lines on, a second one."""
    from threedgen.export.shape import unwrap as module

    points, floor = sheet(7)
    half = floor[points[floor][..., 0].max(axis=1) <= 0]
    upper = np.arange(len(points)) + len(points)
    line = np.abs(points[:, 0]) < 0.3  # not the middle one alone: its inner points are moved a little
    upper[line] = np.flatnonzero(line)
    faces = np.concatenate([floor, upper[half]])
    faces = faces[np.unique(np.sort(faces, axis=1), axis=0, return_index=True)[1]]
    points, faces, _ = compact(np.concatenate([points, points]).astype(np.float32), faces)
    at_once, _ = module._in_layers(points, faces, 256, module.COSTS[0], np.zeros(len(faces), int))
    assert overlap(*claims(at_once.uv, at_once.faces, 256)) > 0.1
    mesh, _ = unwrap(points, faces, 256)
    assert overlap(*claims(mesh.uv, mesh.faces, 256)) == 0
    assert np.array_equal(mesh.vertices[mesh.faces], points[faces])  # the same triangles in the same order


def test_padding_grows_with_the_texture() -> None:
    assert [padding(size) for size in (128, 1024, 2048, 4096)] == [4, 4, 8, 16]


@pytest.mark.parametrize("points", [np.zeros((3, 3), np.float32), np.full((3, 3), np.nan, np.float32)])
def test_a_surface_that_cannot_be_unwrapped_is_said_in_a_sentence(points: np.ndarray) -> None:
    with pytest.raises(UnwrapError, match="cannot be unwrapped|could not be unwrapped") as caught:
        unwrap(points, np.array([[0, 1, 2]], np.int32), 256)
    assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


def sheet(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of size x size vertices at whole numbers, its middle at 0, those from the right to the left; those
    inside are moved a little. Returns vertices (V, 3) and faces (F, 3) that look up."""
    half, rng = size // 2, np.random.default_rng(seed)
    points = np.array([(half - k % size, k // size - half, 0.0) for k in range(size * size)])
    inside = np.abs(points[:, :2]).max(axis=1) < half
    points[inside, :2] += rng.uniform(-0.2, 0.2, (inside.sum(), 2))
    first = np.array([k for k in range(size * (size - 1)) if k % size < size - 1])
    faces = np.concatenate(
        [np.stack(f, 1) for f in ((first + 1, first, first + size), (first + 1, first + size, first + size + 1))]
    )
    return points, faces


def uv_areas(uv: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Twice the area of each face in the texture; below 0 it is turned over."""
    a, b, c = (uv[corners[:, k]] for k in range(3))
    return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]


@pytest.mark.parametrize("seed", range(4))
def test_no_collapse_turns_a_face_over_in_the_texture(seed: int) -> None:
    points, faces = sheet(12, seed)
    uv = points[:, :2] + 0.35 * np.sin(2.1 * points[:, 1::-1] + seed)  # bent, so straight lines cross over
    assert (uv_areas(uv, faces) > 0).all()
    _, corners = collapse(points, faces, 120, faces, uv)
    assert len(corners) < 0.8 * len(faces) and (uv_areas(uv, corners) > 0).all()


def test_the_end_of_a_seam_is_not_drawn_to_one_side_of_it() -> None:
    """A slit in the texture along y = 0 from the left border to the middle: its faces keep their side of it."""
    points, faces = sheet(7)
    points[:, :2] = np.round(points[:, :2])
    end = next(k for k, p in enumerate(points) if not p.any())
    points[end + 1, 0] = -0.4  # the shortest edge, so it comes first: from the end to the next vertex of the slit
    slit = np.flatnonzero((points[:, 1] == 0) & (points[:, 0] < 0))
    below = {k: len(points) + n for n, k in enumerate(slit)}
    lower = points[faces].mean(axis=1)[:, 1] < 0
    corners = np.array([[below.get(k, k) if low else k for k in face] for face, low in zip(faces, lower, strict=True)])
    uv = np.concatenate([points[:, :2], points[slit, :2] - (0, 0.3)])
    for target in range(len(faces) - 2, 30, -6):
        fewer, worn = collapse(points, faces, target, corners, uv)
        height = points[fewer].mean(axis=1)[:, 1]
        assert (height[np.isin(worn, list(below.values())).any(axis=1)] < 0).all()
        assert (height[np.isin(worn, slit).any(axis=1)] > 0).all()
        assert len(fewer) <= max(target, 50)  # elsewhere nothing stands in the way


@pytest.mark.parametrize(("side", "packings"), [(96, 1), (97, 2), (1000, 2)])
def test_charts_stay_apart_where_the_library_needs_more_than_the_texture(
    monkeypatch: pytest.MonkeyPatch, side: int, packings: int
) -> None:
    """At 64 pixels 4 texels are kept free, of which 3 are asked for on each side of a chart: enough up to 96."""
    from threedgen.export.shape import unwrap as module

    gaps: list[int] = []
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)

    def pack(vertices: np.ndarray, layers: list[np.ndarray], texture: int, gap: int, cost: float) -> SimpleNamespace:
        gaps.append(gap)
        mesh = np.arange(4), layers[0], points[:, :2]
        return SimpleNamespace(width=side, height=side // 2, chart_count=1, get_mesh=lambda number: mesh)

    monkeypatch.setattr(module, "_pack", pack)
    module._in_layers(points, faces, 64, 8.0, np.zeros(len(faces), int))
    assert len(gaps) == packings and gaps[0] == 3
    assert 2 * gaps[-1] * 64 >= 4 * side
    if packings > 1:
        assert gaps[-1] == -(-4 * side // 128) + 1
