import math
from functools import partial

import numpy as np
import pytest
import torch
import trimesh

from benchmarks.glb_reader import read_glb
from tests.support.errors import refused
from threedgen.export.files.glb import glb_bytes, save_glb, to_gltf_axes
from threedgen.export.renders import DepthFusion, spiral_cameras
from threedgen.export.shape import from_field as meshes
from threedgen.export.shape import opacity as opacities
from threedgen.export.shape.from_field import FieldView, field_surface
from threedgen.export.shape.mesh import Mesh
from threedgen.export.shape.opacity import EmptyField, clean
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_linear
from threedgen.representations.base import Field, Render

R = 56


def ball(radius: float, centre=(0.0, 0.0, 0.0), peak: float = 60.0, soft: float = 0.01):
    middle = torch.tensor(centre)
    return lambda x: peak * torch.sigmoid((radius - (x - middle).norm(dim=-1)) / soft)


def box(half, centre=(0.0, 0.0, 0.0), peak: float = 60.0, soft: float = 0.01):
    size, middle = torch.tensor(half), torch.tensor(centre)
    return lambda x: peak * torch.sigmoid(-((x - middle).abs() - size).amax(dim=-1) / soft)


def union(*parts):
    return lambda x: torch.stack([part(x) for part in parts]).amax(dim=0)


def position_colour(x):
    return (x + 1) / 2


def extract(density: Field, colour: Field, resolution: int, radius: float = 1.0) -> Mesh:
    return field_surface(FieldView(density, colour, radius), resolution)


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_extract_puts_the_surface_within_a_cell():
    mesh = extract(ball(0.5, (0.2, -0.1, 0.3)), position_colour, R)
    offset = mesh.vertices - np.array([0.2, -0.1, 0.3])
    distance = np.linalg.norm(offset, axis=1)
    assert np.abs(distance - 0.5).max() < 2 / (R - 1)
    assert (mesh.normals * offset).sum(axis=1).min() > 0.95 * 0.5
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    large = extract(ball(1.2), position_colour, 40, radius=2.0)
    assert np.linalg.norm(large.vertices, axis=1).mean() == pytest.approx(1.2, abs=0.06)
    assert large.info["resolution"] == 40 and large.info["radius"] == 2.0


def test_extract_ignores_haze_and_hollow_interior():
    shell, inside = ball(0.6), ball(0.5)
    hollow = lambda x: shell(x) - 0.98 * inside(x) + 1.0  # noqa: E731
    mesh = extract(hollow, position_colour, R)
    assert solid(mesh).volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.06)
    assert solid(mesh).body_count == 1  # no inner wall


def test_extract_keeps_a_thin_plate_that_is_half_opaque():
    plate = box((0.5, 0.5, 0.04), soft=0.002)
    assert 1 - math.exp(-60 * 0.08) > 0.5 > 1 - math.exp(-3 * 0.08)
    assert 0.04 < np.ptp(extract(plate, position_colour, R).vertices[:, 2]) < 0.16
    with refused(kind=EmptyField):
        extract(lambda x: plate(x) * 3 / 60, position_colour, R)


def test_extract_cuts_and_closes_at_the_scene_boundary():
    mesh = extract(box((0.9, 0.9, 0.9)), position_colour, R)
    assert solid(mesh).is_watertight
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 1.02


def test_extract_drops_small_parts(monkeypatch):
    for module in (meshes, opacities):
        monkeypatch.setattr(module, "MIN_PART", 0.05)
    large, small = ball(0.4, (-0.3, 0, 0)), ball(0.05, (0.6, 0.3, 0.2))
    mesh = extract(union(large, small), position_colour, R)
    assert mesh.info["parts_found"] == 2 and mesh.info["parts_kept"] == 1
    assert mesh.vertices[:, 0].max() < 0.2 and 0 < mesh.info["volume_dropped"] < 0.02
    second = ball(0.25, (0.6, 0.3, 0.2))
    both = extract(union(large, second), position_colour, R)
    assert solid(both).body_count == 2 and both.info["parts_kept"] == 2


def test_extract_refuses_a_field_that_is_empty_or_not_finite():
    for peak in (0.0, 0.2):
        with refused(None, " %", "seed", "optimizer", kind=EmptyField):
            extract(ball(0.5, peak=peak), position_colour, 32)
    with refused(kind=EmptyField):
        extract(lambda x: x[:, 0] / 0, position_colour, 16)


def test_extract_is_independent_of_chunk_size(monkeypatch):
    one = extract(ball(0.5), position_colour, 32)
    monkeypatch.setattr(meshes, "CHUNK", 1000)
    other = extract(ball(0.5), position_colour, 32)
    assert np.array_equal(one.vertices, other.vertices) and np.allclose(one.colours, other.colours)


@pytest.mark.parametrize("peak", [5, 60, 600])
def test_extract_keeps_the_size_of_a_block_of_any_density(peak):
    mesh = extract(box((0.5, 0.4, 0.3), peak=peak), position_colour, R)
    assert np.allclose(np.abs(mesh.vertices).max(axis=0), [0.5, 0.4, 0.3], atol=0.07)
    assert solid(mesh).volume == pytest.approx(8 * 0.5 * 0.4 * 0.3, rel=0.25)


def test_large_pieces_drops_a_piece_attached_at_a_corner():
    """The grid has one part; its surface has two pieces."""
    tau = np.zeros((16, 16, 16), np.float32)
    tau[3:11, 3:11, 3:11] = tau[11, 11, 11] = 1
    tau, info = clean(tau, 0.5)
    vertices, faces = meshes.isosurface(tau, 0.5, 0.1, 0.0)
    assert info["parts_kept"] == 1 and trimesh.Trimesh(vertices, faces, process=False).body_count == 2
    vertices, faces, count = meshes.large_pieces(vertices, faces)
    kept = trimesh.Trimesh(vertices, faces, process=False)
    assert count == kept.body_count == 1 and kept.is_watertight and kept.bounds[1].max() < 1.1
    assert faces.max() == len(vertices) - 1 and faces.dtype == np.int32


def test_vertex_colours_match_their_position():
    mesh = extract(ball(0.6), position_colour, R)
    assert np.abs(mesh.colours - (mesh.vertices + 1) / 2).max() < 0.06
    assert mesh.colours.min() >= 0 and mesh.colours.max() <= 1
    clear = extract(ball(0.6, peak=6.0), lambda x: torch.full((len(x), 3), 0.7), R)
    assert np.abs(clear.colours - 0.7).max() < 1e-4, "darkened"


def test_vertex_colours_ignore_the_transparent_skin():
    """The undefined colour of empty space (pink) must not show."""

    def colour(x):
        outside = (x.norm(dim=-1) > 0.6)[:, None]
        return torch.where(outside, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 0.5, 0.0]))

    mesh = extract(ball(0.6, peak=200.0, soft=0.002), colour, R)
    assert np.median(mesh.colours[:, 0]) < 0.05 and np.abs(mesh.colours[:, 1] - 0.5).mean() < 0.1


def test_save_glb_is_read_by_trimesh(tmp_path):
    mesh = extract(union(ball(0.3), box((0.2, 0.05, 0.05), (0.4, 0, 0))), position_colour, R)
    path = save_glb(mesh, tmp_path / "dog.glb", {"prompt": 'a "dog" \n\ud800 é', "seed": 3})
    extras = read_glb(path.read_bytes()).gltf_extras
    assert extras["seed"] == 3 and extras["parts_kept"] == 1
    (loaded,) = trimesh.load(path, process=False).geometry.values()
    assert loaded.is_watertight and loaded.volume == pytest.approx(solid(mesh).volume, rel=1e-4)
    assert np.allclose(loaded.vertices, to_gltf_axes(mesh.vertices))
    assert (loaded.vertex_normals * to_gltf_axes(mesh.normals)).sum(axis=1).min() > 0.8
    colours = loaded.visual.vertex_attributes["color"][:, :3] / 65535
    assert np.allclose(colours, to_linear(mesh.colours), atol=1e-4)


def test_glb_bytes_uses_32_bit_indices_for_large_meshes():
    count = 70_000
    vertices = np.random.default_rng(0).random((count, 3)).astype(np.float32)
    faces = np.array([[0, 1, count - 1]], np.int32)
    flat = Mesh(vertices, faces, vertices, vertices)
    assert read_glb(glb_bytes(flat)).tree["accessors"][-1]["componentType"] == 5125


def render_ball(radius: float, cameras: Cameras) -> Render:
    """Render a ball exactly: red for x > 0, else blue."""
    origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
    middle = -(origins * directions).sum(-1, keepdim=True)
    square = radius**2 - (origins + middle * directions).square().sum(-1, keepdim=True)
    opacity = (square > 0).float()
    depth = (middle - square.clamp(min=0).sqrt()) * opacity
    red = (origins + depth * directions)[:, :1] > 0
    rgb = torch.cat([red, torch.zeros_like(red), ~red], dim=-1) * opacity
    return Render(rgb, rgb, torch.zeros_like(rgb), opacity, depth, torch.zeros_like(depth))


@pytest.mark.parametrize("radius", [0.5, 0.15])
def test_fused_depth_of_a_ball_gives_its_surface_and_colours(radius: float) -> None:
    """The empty space around the small ball is 300 times as large as the ball."""
    fusion = DepthFusion(partial(render_ball, radius), spiral_cameras(24, 96), 1.0)
    mesh = extract(fusion.density, fusion.colour, 64)
    distance = torch.from_numpy(mesh.vertices).norm(dim=-1)
    assert abs(float(distance.median()) - radius) < 0.02
    seen = mesh.vertices[:, 2] > -0.4 * radius  # the cameras are above -40 degrees
    assert abs(distance[seen] - radius).max() < 0.06
    side = (abs(mesh.vertices[:, 0]) > 0.2 * radius) & seen
    assert ((mesh.colours[side, 0] > 0.5) == (mesh.vertices[side, 0] > 0)).mean() > 0.97
