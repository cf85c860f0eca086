"""What pictures say of a texel, against recordings of the reference; limits of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.parity_files import parity_files
from threedgen.export.surface.blend import LEAST, OBJECT, Mean, Trust, poisson


@pytest.mark.parametrize("path", parity_files("texture_blend"), ids=lambda path: path.stem)
def test_recorded(path: Path) -> None:
    file = np.load(path)
    meta = json.loads(str(file["meta_json"]))
    trust = Trust(
        error=meta["pos_error_eps"],
        cosine=meta["aoi_cos_thresh"],
        jump=meta["depth_grad_thresh"],
        beside_edge=0.0,
        power=meta["alpha"],
        window=False,
    )
    cosine = file["in:uv_aoi_cos"]
    valid = trust.valid(file["in:uv_pos_error"], cosine, file["in:uv_depth_grad"]) & file["in:uv_mask"]
    assert (valid == file["out:valid_mask"]).all()
    weights = [trust.weight(c, v, w) for c, v, w in zip(cosine, valid, meta["view_weight"], strict=True)]
    mean = Mean(cosine[0].size)
    for colours, weight in zip(file["in:uv_attr_proj"], weights, strict=True):
        mean.add(colours.reshape(-1, 3), weight.ravel())
    assert (mean.known == file["out:valid_any"].ravel()).all()
    shares = np.stack(weights) / np.maximum(mean.weights, LEAST).reshape(cosine[0].shape)
    np.testing.assert_allclose(shares, file["out:weight"], atol=1e-5)
    texture = mean.over(file["in:existing_texture"].reshape(-1, 3))
    np.testing.assert_allclose(texture, file["out:texture"].reshape(-1, 3), atol=1e-5)
    inside = file["in:poisson_mask"] > 0.5
    found = poisson(file["in:poisson_src"], file["in:poisson_tgt"], inside, meta["poisson_iters"])
    np.testing.assert_allclose(found, file["out:poisson"], atol=1e-5)


def test_a_weight_lets_the_straightest_decide_and_a_view_that_counts_for_more_keeps_it_longer() -> None:
    cosine = np.array([1.0, 0.5, 0.3, 0.1])
    valid = OBJECT.valid(np.zeros(4), cosine, np.zeros(4))
    assert valid.tolist() == [True, True, True, False]
    plain, heavy = OBJECT.weight(cosine, valid), OBJECT.weight(cosine, valid, 3.0)
    np.testing.assert_allclose(plain, [1, 0.125, 0.027, 0])
    np.testing.assert_allclose(heavy, [1, 0.5, 0.3, 0])


def test_a_picture_with_its_own_gradients_stays() -> None:
    picture = np.random.default_rng(0).random((8, 9, 3))
    np.testing.assert_allclose(poisson(picture, picture, np.ones((8, 9), bool), 50), picture)
