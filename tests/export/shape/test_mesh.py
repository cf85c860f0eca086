"""From a field to a mesh to a GLB file, checked with an independent reader."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.export.files.glb import glb_bytes, save_glb, to_gltf_axes
from threedgen.export.shape import mesh as meshes
from threedgen.export.shape import opacity as opacities
from threedgen.export.shape.from_field import half_depth
from threedgen.export.shape.mesh import Mesh, calm, extract, sample_density
from threedgen.export.shape.opacity import EmptyField, clean, depth_field, optical_depth, soften, typical
from threedgen.geometry.images import to_linear

R = 56


def ball(radius: float, centre=(0.0, 0.0, 0.0), peak: float = 60.0, soft: float = 0.01):
    """Density of a ball with a soft skin."""
    middle = torch.tensor(centre)
    return lambda x: peak * torch.sigmoid((radius - (x - middle).norm(dim=-1)) / soft)


def box(half, centre=(0.0, 0.0, 0.0), peak: float = 60.0, soft: float = 0.01):
    size, middle = torch.tensor(half), torch.tensor(centre)
    return lambda x: peak * torch.sigmoid(-((x - middle).abs() - size).amax(dim=-1) / soft)


def union(*parts):
    return lambda x: torch.stack([part(x) for part in parts]).amax(dim=0)


def position_colour(x):
    """The colour tells where a point is: (x + 1) / 2."""
    return (x + 1) / 2


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def half_space_colour(x):
    """Red in front (+x), green on the left (+y) of what is left, blue above, grey elsewhere."""
    colour = torch.full((len(x), 3), 0.3)
    for axis in range(3):
        colour[x[:, axis] > 0.3] = torch.eye(3)[axis]
    return colour


# ---------------------------------------------------------------- the surface


@pytest.mark.parametrize(
    ("field", "volume"),
    [(ball(0.6), 4 / 3 * math.pi * 0.6**3), (box((0.5, 0.3, 0.2)), 8 * 0.5 * 0.3 * 0.2)],
    ids=["ball", "box"],
)
def test_volume_and_closedness(field, volume):
    made = extract(field, position_colour, R)
    body = solid(made)
    assert body.is_watertight and body.is_winding_consistent
    assert body.volume == pytest.approx(volume, rel=0.09)  # positive: the triangles face outwards
    assert made.vertices.dtype == np.float32 and made.faces.dtype == np.int32
    assert made.info["parts_found"] == made.info["parts_kept"] == 1


def test_surface_is_where_it_should_be():
    made = extract(ball(0.5, (0.2, -0.1, 0.3)), position_colour, R)
    offset = made.vertices - np.array([0.2, -0.1, 0.3])
    distance = np.linalg.norm(offset, axis=1)
    cell = 2 / (R - 1)
    assert np.abs(distance - 0.5).max() < cell
    assert (made.normals * offset).sum(axis=1).min() > 0.95 * 0.5
    assert np.allclose(np.linalg.norm(made.normals, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_the_surface_hardly_depends_on_how_dense_the_field_is(scale):
    usual = solid(extract(ball(0.6), position_colour, R)).volume
    other = solid(extract(ball(0.6, peak=60 * scale), position_colour, R)).volume
    assert other == pytest.approx(usual, rel=0.12)


def test_haze_and_a_hollow_inside_do_not_matter():
    shell, inside = ball(0.6), ball(0.5)
    hollow = lambda x: shell(x) - 0.98 * inside(x) + 1.0  # noqa: E731
    made = extract(hollow, position_colour, R)
    assert solid(made).volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.06)
    assert solid(made).body_count == 1  # no inner wall


def test_a_thin_plate_is_kept_if_it_looks_half_opaque():
    plate = box((0.5, 0.5, 0.04), soft=0.002)
    for peak, kept in [(60.0, True), (3.0, False)]:
        opacity = 1 - math.exp(-peak * 0.08)
        assert (opacity > 0.5) is kept
        field = union(plate, lambda x: 0 * x[:, 0])
        try:
            made = extract(lambda x, p=peak, f=field: f(x) * p / 60, position_colour, R)
            thick = made.vertices[:, 2].max() - made.vertices[:, 2].min()
            assert kept and 0.04 < thick < 0.16
        except EmptyField:
            assert not kept


def test_what_reaches_beyond_the_sphere_is_cut_and_closed():
    made = extract(box((0.9, 0.9, 0.9)), position_colour, R)
    assert solid(made).is_watertight
    assert np.linalg.norm(made.vertices, axis=1).max() < 1.02


def test_radius_and_resolution_are_those_asked_for():
    made = extract(ball(1.2), position_colour, 40, radius=2.0)
    assert np.linalg.norm(made.vertices, axis=1).mean() == pytest.approx(1.2, abs=0.06)
    assert made.info["resolution"] == 40 and made.info["radius"] == 2.0


# ---------------------------------------------------------------- parts


def test_a_small_part_is_dropped_and_a_large_one_kept(monkeypatch):
    monkeypatch.setattr(meshes, "SMALLEST", 0.05)
    large, speck = ball(0.4, (-0.3, 0, 0)), ball(0.05, (0.6, 0.3, 0.2))
    made = extract(union(large, speck), position_colour, R)
    assert made.info["parts_found"] == 2 and made.info["parts_kept"] == 1
    assert made.vertices[:, 0].max() < 0.2 and 0 < made.info["volume_dropped"] < 0.02
    second = ball(0.25, (0.6, 0.3, 0.2))
    both = extract(union(large, second), position_colour, R)
    assert solid(both).body_count == 2 and both.info["parts_kept"] == 2


@pytest.mark.parametrize(
    ("peak", "advice"), [(0.0, "nothing is there; the learning rates .* may be too high"), (0.2, "train longer")]
)
def test_an_empty_field_is_said_in_one_sentence(peak, advice):
    with pytest.raises(EmptyField, match=f"nothing solid came out.*{advice}") as caught:
        extract(ball(0.5, peak=peak), position_colour, 32)
    assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


def test_a_field_that_is_not_finite_is_said():
    with pytest.raises(EmptyField, match="no numbers"):
        extract(lambda x: x[:, 0] / 0, position_colour, 16)


# ---------------------------------------------------------------- queries


def test_a_masked_cell_is_asked_with_its_neighbours_on_all_sides():
    mask = np.zeros((8, 8, 8), bool)
    mask[4, 4, 4] = True
    sigma = sample_density(lambda x: torch.ones(len(x)), 33, 1.0, mask=mask)
    edges = [np.flatnonzero(sigma.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    assert all((edge[0], edge[-1]) == (12, 23) for edge in edges), "the points of cells 3, 4 and 5"


def test_only_masked_cells_are_asked():
    asked = []

    def density(x):
        asked.append(len(x))
        return ball(0.3)(x)

    everywhere = sample_density(density, R, 1.0)
    whole = sum(asked)
    asked.clear()
    axis = (np.arange(16) + 0.5) / 8 - 1
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    masked = sample_density(density, R, 1.0, mask=distance < 0.45)
    assert np.abs(everywhere - masked).max() < 1e-3
    assert sum(asked) < 0.4 * whole


def test_chunks_do_not_change_the_mesh_and_no_chunk_is_larger(monkeypatch):
    sizes = []

    def density(x):
        assert not torch.is_grad_enabled() and x.dtype == torch.float32
        sizes.append(len(x))
        return ball(0.5)(x)[:, None]  # a column is taken too

    one = extract(density, position_colour, 32)
    sizes.clear()
    monkeypatch.setattr(meshes, "CHUNK", 1000)
    other = extract(density, position_colour, 32)
    assert max(sizes) == 1000
    assert np.array_equal(one.vertices, other.vertices) and np.allclose(one.colours, other.colours)


# ---------------------------------------------------------------- pure functions


def test_optical_depth_is_that_of_the_clearest_direction():
    sigma = np.zeros((5, 5, 5), np.float32)
    sigma[2, 2, :] = [1, 2, 3, 4, 5]
    tau = optical_depth(sigma, 0.1)
    assert tau[2, 2] == pytest.approx(0.05 * np.array([1, 2, 3, 4, 5]))  # from the side: half a cell
    solid_block = optical_depth(np.ones((5, 5, 5), np.float32), 0.1)
    assert solid_block[2, 2, 2] == pytest.approx(0.25) and solid_block[1, 2, 2] == pytest.approx(0.15)


def test_typical_matter_does_not_depend_on_the_box_and_scales_with_the_density():
    rng = np.random.default_rng(0)
    dense, thin = 50 + 10 * rng.random(2000), 0.5 * rng.random(20_000)
    level = typical(np.concatenate([dense, thin]).astype(np.float32))
    assert 40 < level < 60
    assert typical(np.concatenate([dense, thin, np.zeros(10**5)])) == pytest.approx(level, rel=1e-5)
    assert typical(3 * np.concatenate([dense, thin])) == pytest.approx(3 * level, rel=1e-5)
    assert typical(np.zeros((3, 3, 3))) == 0


def test_typical_matter_begins_at_two_percent_of_the_squares():
    assert typical(np.array([1.0, 10.0])) == 10, "1 of 101"
    assert typical(np.repeat([1.0, 10.0], [300, 97])) == 1, "3 of 100"
    assert typical(np.repeat([1.0, 10.0], [150, 98])) == 10, "1.5 of 100"


def test_a_soft_field_is_freed_of_noise_and_an_opaque_one_left_alone():
    noise = np.random.default_rng(0).uniform(0.5, 1.5, (R, R, R)).astype(np.float32)
    cell = 2 / (R - 1)

    def crumpled(peak):
        """How far from a plane the top of a block of noisy matter lies, in cells; and the blur."""
        sigma = np.zeros((R, R, R), np.float32)
        sigma[4:-4, 4:-4, 4 : R // 2] = peak * noise[4:-4, 4:-4, 4 : R // 2]
        tau, info = depth_field(sigma, cell, 1.0)
        middle = tau[12:-12, 12:-12, R // 4 :] > info["level"]
        height = middle.sum(axis=-1)
        return np.ptp(height), info["blur"] / cell

    assert crumpled(60)[1] < 0.25 and crumpled(4)[1] > 0.5
    assert crumpled(4)[0] <= 1
    block = np.ones((8, 8, 8), np.float32)
    assert soften(block, 0.2) is block and soften(block, 1.0) == pytest.approx(block)


def test_the_blur_is_the_square_of_the_free_path_of_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """In radii of the world, handed on in cells, and bounded."""
    asked: list[float] = []
    monkeypatch.setattr(opacities, "soften", lambda sigma, cells: asked.append(cells) or sigma)
    for radius, matter, wanted in ((1.0, 8.0, 0.6 / 64), (2.0, 8.0, 0.6 / 256), (1.0, 2.0, 0.03)):
        sigma = np.full((R, R, R), matter, np.float32)
        cell = 2 * radius / (R - 1)
        _, info = depth_field(sigma, cell, radius)
        assert info["blur"] == pytest.approx(wanted * radius) and asked[-1] == pytest.approx(info["blur"] / cell)


@pytest.mark.parametrize("peak", [5, 15, 60])
def test_a_surface_lies_near_to_where_the_matter_begins(peak):
    """A block of thin matter keeps its size: half of the light would come many cells deep into it."""
    made = extract(box((0.5, 0.4, 0.3), peak=peak), position_colour, R)
    assert np.allclose(np.abs(made.vertices).max(axis=0), [0.5, 0.4, 0.3], atol=0.07)
    assert solid(made).volume == pytest.approx(8 * 0.5 * 0.4 * 0.3, rel=0.25)


def test_cleaning_fills_cavities_and_joins_over_corners():
    tau = np.zeros((12, 12, 12), np.float32)
    tau[2:9, 2:9, 2:9] = 1
    tau[4:7, 4:7, 4:7] = 0
    tau[9, 9, 9] = 1  # touches only at a corner
    cleaned, info = clean(tau, 0.35, 0.01)
    inside = cleaned > 0.35
    assert info["parts_found"] == 1 and info["cavities_filled"] > 0 and inside[5, 5, 5] and inside[9, 9, 9]
    assert ndimage.label(~inside)[1] == 1


def test_a_crumb_that_hangs_on_a_corner_is_no_body():
    """On the grid it is one part with the block; the surface goes between the two, and the crumb goes."""
    tau = np.zeros((16, 16, 16), np.float32)
    tau[3:11, 3:11, 3:11] = tau[11, 11, 11] = 1
    tau, info = clean(tau, 0.5, 0.01)
    vertices, faces = meshes.isosurface(tau, 0.5, 0.1, 0.0)
    assert info["parts_kept"] == 1 and trimesh.Trimesh(vertices, faces, process=False).body_count == 2
    vertices, faces, count = meshes.large_pieces(vertices, faces)
    rest = trimesh.Trimesh(vertices, faces, process=False)
    assert count == rest.body_count == 1 and rest.is_watertight and rest.bounds[1].max() < 1.1
    assert faces.max() == len(vertices) - 1 and faces.dtype == np.int32


def test_smoothing_removes_steps_and_keeps_the_volume():
    grid = sample_density(ball(0.6, soft=0.001), R, 1.0)
    vertices, faces = meshes.isosurface(np.minimum(grid, 60), 30.0, 2 / (R - 1), 1.0)
    smooth = meshes.taubin(vertices, faces, 10)
    before, after = trimesh.Trimesh(vertices, faces), trimesh.Trimesh(smooth, faces)
    assert after.volume == pytest.approx(before.volume, rel=0.01)
    assert after.face_adjacency_angles.mean() < 0.8 * before.face_adjacency_angles.mean()


# ---------------------------------------------------------------- colours


def test_colours_come_from_the_place_of_the_vertex():
    made = extract(ball(0.6), position_colour, R)
    assert np.abs(made.colours - (made.vertices + 1) / 2).max() < 0.06
    assert made.colours.min() >= 0 and made.colours.max() <= 1


def test_a_surface_of_no_field_has_no_depth():
    made = extract(ball(0.6), position_colour, R)
    assert half_depth(made) > 0 == half_depth(replace(made, info={}))


def test_thin_matter_has_its_colour_whole():
    made = extract(ball(0.6, peak=6.0), lambda x: torch.full((len(x), 3), 0.7), R)
    assert np.abs(made.colours - 0.7).max() < 1e-4


def test_colour_is_that_below_the_transparent_skin():
    """A field says anything where nothing is: pink outside must not be seen."""

    def colour(x):
        outside = (x.norm(dim=-1) > 0.6)[:, None]
        return torch.where(outside, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 0.5, 0.0]))

    made = extract(ball(0.6, peak=200.0, soft=0.002), colour, R)
    assert np.median(made.colours[:, 0]) < 0.05 and np.abs(made.colours[:, 1] - 0.5).mean() < 0.1


# ---------------------------------------------------------------- the file


def read_json(data: bytes) -> dict:
    assert data[:4] == b"glTF" and struct.unpack("<II", data[4:12]) == (2, len(data))
    length = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[20 : 20 + length])


def test_glb_read_back_by_another_program(tmp_path):
    made = extract(union(ball(0.3), box((0.2, 0.05, 0.05), (0.4, 0, 0))), half_space_colour, R)
    path = save_glb(made, tmp_path / "dog.glb", {"prompt": 'a "dog" \n\ud800 é', "seed": 3})
    (loaded,) = trimesh.load(path, process=False).geometry.values()
    assert loaded.is_watertight and loaded.volume == pytest.approx(solid(made).volume, rel=1e-4)
    assert np.allclose(loaded.vertices, to_gltf_axes(made.vertices))
    assert (loaded.vertex_normals * to_gltf_axes(made.normals)).sum(axis=1).min() > 0.8
    # the nose points along world +x, so along glTF's +z; up is +y
    nose = loaded.vertices[loaded.vertices[:, 2].argmax()]
    assert nose[2] > 0.5 and abs(nose[0]) < 0.12 and abs(nose[1]) < 0.12
    colours = loaded.visual.vertex_attributes["color"][:, :3] / 65535
    assert np.allclose(colours, to_linear(made.colours), atol=1e-4)
    red = colours[loaded.vertices[:, 2] > 0.4]
    assert red[:, 0].min() > 0.8 and red[:, 1:].max() < 0.2


def test_glb_keeps_to_the_format():
    made = extract(ball(0.5), position_colour, 24)
    data = glb_bytes(made, "ball", {"seed": 1})
    assert data == glb_bytes(made, "ball", {"seed": 1})
    tree = read_json(data)
    assert tree["asset"]["extras"] == tree["nodes"][0]["extras"] == {"seed": 1}
    for view in tree["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
    accessors = tree["accessors"]
    position = accessors[tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert position["min"] == to_gltf_axes(made.vertices).min(axis=0).tolist()
    assert [a["componentType"] for a in accessors] == [5126, 5126, 5123, 5123]
    assert accessors[-1]["count"] == made.faces.size
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0


def test_many_vertices_get_larger_indices():
    count = 70_000
    vertices = np.random.default_rng(0).random((count, 3)).astype(np.float32)
    faces = np.array([[0, 1, count - 1]], np.int32)
    flat = Mesh(vertices, faces, vertices, vertices)
    assert read_json(glb_bytes(flat))["accessors"][-1]["componentType"] == 5125


def test_info_travels_in_the_file(tmp_path):
    made = extract(ball(0.5), position_colour, 24)
    tree = read_json(save_glb(made, tmp_path / "a.glb", {"seed": 1}).read_bytes())
    assert tree["asset"]["extras"]["seed"] == 1 and tree["asset"]["extras"]["parts_kept"] == 1


def test_axes_turn_and_do_not_mirror():
    turned = to_gltf_axes(np.eye(3))  # the images of world x, y, z
    assert turned.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert np.linalg.det(turned) == pytest.approx(1)


def test_noise_of_normals_is_calmed_and_the_shape_stays():
    sphere = trimesh.creation.icosphere(subdivisions=5)
    noisy = sphere.vertices + np.random.default_rng(0).normal(0, 0.3, sphere.vertices.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    found = calm(noisy.astype(np.float32), sphere.faces, 3.0)
    error = [np.degrees(np.arccos(np.clip((n * sphere.vertices).sum(1), -1, 1))).mean() for n in (noisy, found)]
    assert error[0] > 15 and error[1] < 3
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5) and found.dtype == np.float32
