"""Colours of texels that no training camera sees."""

import numpy as np
import pytest
import trimesh

from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.unseen import diffuse_colours, fill_unseen, visible_faces
from threedgen.geometry.raster import interpolate, rasterise_uv

COUNT = 24**2
SQUARE = (
    np.stack([*np.meshgrid(*[np.linspace(0, 1, 24)] * 2), np.zeros((24, 24))], -1).reshape(-1, 3).astype(np.float32)
)
UP = np.tile(np.float32([0, 0, 1]), (COUNT, 1))


@pytest.fixture(scope="module")
def ball() -> TexturedMesh:
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    return unwrap(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), 128)[0]


def heights(mesh: TexturedMesh) -> np.ndarray:
    return mesh.vertices[mesh.faces].mean(axis=1)[:, 2] / 0.7


def test_visible_faces_of_a_ball_depend_on_the_elevations(ball: TexturedMesh) -> None:
    visible = visible_faces(ball, (0.0, 30.0))
    assert visible[heights(ball) > -0.4].all() and not visible[heights(ball) < -0.8].any()
    below = visible_faces(ball, (-30.0, 0.0))
    assert below[heights(ball) < 0.4].all() and not below[heights(ball) > 0.8].any()


def test_fill_unseen_recolours_only_hidden_faces(ball: TexturedMesh) -> None:
    buffers = rasterise_uv(ball.uv, ball.faces, 128)
    height = interpolate(ball.vertices, ball.faces, buffers)[..., 2] / 0.7
    blue, cyan = np.float32([0.1, 0.2, 0.8]), np.float32([0.2, 1, 1])
    texture = np.where(height[..., None] < -0.75, cyan, blue).astype(np.float32)
    visible = heights(ball) > -0.65
    filled, share = fill_unseen(texture, ball, visible)
    assert 0.1 < share < 0.25
    assert np.abs(filled[buffers.mask] - blue).max() < 0.02
    unchanged = buffers.mask & visible[buffers.face]
    assert np.array_equal(filled[unchanged], texture[unchanged])


@pytest.mark.parametrize(("visible", "share"), [(True, 0.0), (False, 1.0)])
def test_fill_unseen_keeps_a_fully_visible_or_hidden_texture(ball: TexturedMesh, visible: bool, share: float) -> None:
    texture = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    filled, filled_share = fill_unseen(texture, ball, np.full(len(ball.faces), visible))
    assert filled is texture and filled_share == share


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
