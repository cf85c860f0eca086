"""Recolouring of texels that no training camera sees."""

import numpy as np
import pytest
import trimesh

from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.unseen import fill_unseen, visible_faces
from threedgen.geometry.raster import interpolate, rasterise_uv


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
