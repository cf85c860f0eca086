"""Textures: sampling, its adjoint and filling."""

import numpy as np
import pytest

from tests.support.errors import refused
from threedgen.geometry.texture import fill, sample, scatter


def test_sample_is_bilinear_inside_and_constant_outside():
    texture = np.array([[[0.0], [1.0]], [[2.0], [3.0]]], np.float32)
    values = sample(texture, np.array([[0.5, 0.5], [0.375, 0.75], [0.0, 1.0], [1.0, 0.0], [-3.0, 9.0]]))
    assert values[:, 0].tolist() == pytest.approx([1.5, 0.25, 0.0, 3.0, 0.0])


def test_scatter_is_the_adjoint_of_sample():
    rng = np.random.default_rng(0)
    texture, uv = rng.random((7, 5, 3)), rng.uniform(-0.2, 1.2, (400, 2))
    values = rng.standard_normal((400, 3))
    assert (sample(texture, uv) * values).sum() == pytest.approx(
        (texture * scatter(values, uv, (7, 5))).sum(), rel=1e-4
    )


def test_fill_uses_the_nearest_covered_texel():
    texture = np.zeros((6, 8, 1), np.float32)
    covered = np.zeros((6, 8), bool)
    covered[2, 1], covered[3, 6] = True, True
    texture[2, 1], texture[3, 6] = 1, 2
    filled = fill(texture, covered)[..., 0]
    assert (filled[:, :3] == 1).all() and (filled[:, 5:] == 2).all() and filled[2, 1] == 1
    with refused():
        fill(texture, covered & False)
