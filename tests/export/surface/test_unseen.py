"""What the cameras of a run hardly saw has the colours around it."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.unseen import fill_unseen, seen_faces
from threedgen.geometry.raster import interpolate, rasterise_uv


@pytest.fixture(scope="module")
def ball() -> TexturedMesh:
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    return unwrap(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), 128)[0]


def heights(mesh: TexturedMesh) -> np.ndarray:
    return mesh.vertices[mesh.faces].mean(axis=1)[:, 2] / 0.7


def test_a_ball_that_is_looked_at_from_above_is_not_seen_from_below(ball: TexturedMesh) -> None:
    seen = seen_faces(ball, (0.0, 30.0))
    assert seen[heights(ball) > -0.4].all() and not seen[heights(ball) < -0.8].any()
    below = seen_faces(ball, (-30.0, 0.0))
    assert below[heights(ball) < 0.4].all() and not below[heights(ball) > 0.8].any()


def test_what_is_not_seen_is_of_the_colour_around_and_the_rest_stays(ball: TexturedMesh) -> None:
    buffers = rasterise_uv(ball.uv, ball.faces, 128)
    height = interpolate(ball.vertices, ball.faces, buffers)[..., 2] / 0.7
    blue, cyan = np.float32([0.1, 0.2, 0.8]), np.float32([0.2, 1, 1])
    texture = np.where(height[..., None] < -0.75, cyan, blue).astype(np.float32)
    seen = heights(ball) > -0.65
    found, share = fill_unseen(texture, ball, seen)
    assert 0.1 < share < 0.25
    assert np.abs(found[buffers.mask] - blue).max() < 0.02
    stays = buffers.mask & seen[buffers.face]
    assert np.array_equal(found[stays], texture[stays])


@pytest.mark.parametrize(("seen", "share"), [(True, 0.0), (False, 1.0)])
def test_all_or_nothing_stays_as_it_is(ball: TexturedMesh, seen: bool, share: float) -> None:
    texture = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    found, told = fill_unseen(texture, ball, np.full(len(ball.faces), seen))
    assert found is texture and told == share
