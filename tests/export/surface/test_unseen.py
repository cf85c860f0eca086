import numpy as np
import pytest
import trimesh

from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.unseen import MIN_SHARE, diffuse_colours, fill_unseen, visible_texels
from threedgen.geometry.raster import Buffers, interpolate, rasterise_uv, unit

COUNT = 24**2
SQUARE = np.float32([(x, y, 0) for y in np.linspace(0, 1, 24) for x in np.linspace(0, 1, 24)])
UP = np.tile(np.float32([0, 0, 1]), (COUNT, 1))


@pytest.fixture(scope="module")
def ball() -> TexturedMesh:
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    return unwrap(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), 128)[0]


def texels(mesh: TexturedMesh, size: int) -> tuple[Buffers, np.ndarray, np.ndarray]:
    """Rasterised texture of a ball, and points and normals (N, 3) of its texels."""
    buffers = rasterise_uv(mesh.uv, mesh.faces, size)
    points = interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask]
    return buffers, points, unit(interpolate(mesh.normals, mesh.faces, buffers)[buffers.mask])


def test_visible_texels_of_a_ball_depend_on_the_elevations(ball: TexturedMesh) -> None:
    _, points, normals = texels(ball, 64)
    height = normals[:, 2]
    share = visible_texels(ball, points, normals, (0.0, 30.0))
    assert share[height > -0.4].min() >= MIN_SHARE > share[height < -0.8].max()
    below = visible_texels(ball, points, normals, (-30.0, 0.0))
    assert below[height < 0.4].min() >= MIN_SHARE > below[height > 0.8].max()


def test_fill_unseen_recolours_only_hidden_texels(ball: TexturedMesh) -> None:
    buffers, points, normals = texels(ball, 128)
    blue, cyan = np.float32([0.1, 0.2, 0.8]), np.float32([0.2, 1, 1])
    hidden = visible_texels(ball, points, normals, (0.0, 30.0)) < MIN_SHARE
    texture = np.zeros((128, 128, 3), np.float32)
    texture[buffers.mask] = np.where(hidden[:, None], cyan, blue)
    filled, share = fill_unseen(texture, ball, (0.0, 30.0))
    assert 0.1 < share < 0.4
    assert np.abs(filled[buffers.mask] - blue).max() < 0.02
    noise = np.random.default_rng(0).random((128, 128, 3)).astype(np.float32)
    unchanged = fill_unseen(noise, ball, (0.0, 30.0))[0] == noise
    assert unchanged[buffers.mask][~hidden].all() and not unchanged[buffers.mask][hidden].all()


def test_diffuse_colours_continues_a_gradient_into_a_hole() -> None:
    colours = np.repeat(SQUARE[:, :1], 3, 1) * np.float32([1, 0.5, 0.2])
    known = (np.abs(SQUARE[:, :2] - 0.5) > 0.25).any(1)
    found = diffuse_colours(SQUARE, UP, np.zeros(COUNT, int), np.where(known[:, None], colours, 0), known)
    assert (found[known] == colours[known]).all()
    assert np.abs(found - colours).max() < 0.06


def test_diffuse_colours_separates_pieces_and_sides() -> None:
    points = np.concatenate([SQUARE, SQUARE + np.float32([0, 0, 1e-3])])
    normals = np.concatenate([-UP, UP])
    red, blue = np.eye(3, dtype=np.float32)[[0, 2]]
    colours = np.repeat(np.stack([red, blue]), COUNT, 0)
    known = np.tile((np.abs(SQUARE[:, :2] - 0.5) > 0.3).any(1), 2)
    for piece in (np.zeros(2 * COUNT, int), np.repeat([0, 1], COUNT)):
        found = diffuse_colours(points, normals, piece, np.where(known[:, None], colours, 0), known)
        assert np.abs(found - colours).max() < 0.02
    known[COUNT:] = False  # a piece without known texel takes the colours of its neighbour
    found = diffuse_colours(points, normals, np.repeat([0, 1], COUNT), np.where(known[:, None], colours, 0), known)
    assert np.abs(found - red).max() < 1e-3


def test_diffuse_colours_keeps_plain_colours_apart_at_a_concave_edge() -> None:
    floor, wall = SQUARE, np.stack([np.zeros(COUNT), SQUARE[:, 1], SQUARE[:, 0]], 1).astype(np.float32)
    points, normals = np.concatenate([floor, wall]), np.repeat(np.float32([[0, 0, 1], [1, 0, 0]]), COUNT, 0)
    colours = np.repeat(np.float32([[0.8, 0.1, 0.1], [0.1, 0.1, 0.1]]), COUNT, 0)
    known = np.concatenate([SQUARE[:, 0] > 0.6, SQUARE[:, 0] > 0.6])
    found = diffuse_colours(points, normals, np.zeros(2 * COUNT, int), np.where(known[:, None], colours, 0), known)
    wrong = np.abs(found - colours).max(1) > 0.1
    assert wrong.mean() < 0.1
