"""Blending of image colours per texel: recorded parity with MV-Adapter, limits of the weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.parity_files import parity_files
from threedgen.export.surface.blend import MIN_WEIGHT, OBJECT_BLEND, BlendOptions, WeightedMean


@pytest.mark.parametrize("path", parity_files("texture_blend"), ids=lambda path: path.stem)
def test_blend_matches_recorded_reference(path: Path) -> None:
    file = np.load(path)
    meta = json.loads(str(file["meta_json"]))
    options = BlendOptions(
        error=meta["pos_error_eps"],
        cosine=meta["aoi_cos_thresh"],
        jump=meta["depth_grad_thresh"],
        beside_edge=0.0,
        opacity=meta["mask_thresh"],
        power=meta["alpha"],
        window=False,
    )
    cosine = file["in:uv_aoi_cos"]
    masks = file["in:uv_mask_proj"].reshape(cosine.shape) if "in:uv_mask_proj" in file else None
    valid = options.valid(file["in:uv_pos_error"], cosine, file["in:uv_depth_grad"], masks) & file["in:uv_mask"]
    assert (valid == file["out:valid_mask"]).all()
    weights = [options.weight(c, v) ** (1 / w) for c, v, w in zip(cosine, valid, meta["view_weight"], strict=True)]
    mean = WeightedMean(cosine[0].size)
    for colours, weight in zip(file["in:uv_attr_proj"], weights, strict=True):
        mean.add(colours.reshape(-1, 3), weight.ravel())
    assert (mean.known == file["out:valid_any"].ravel()).all()
    shares = np.stack(weights) / np.maximum(mean.weights, MIN_WEIGHT).reshape(cosine[0].shape)
    np.testing.assert_allclose(shares, file["out:weight"], atol=1e-5)
    texture = mean.over(file["in:existing_texture"].reshape(-1, 3))
    np.testing.assert_allclose(texture, file["out:texture"].reshape(-1, 3), atol=1e-5)


def test_weight_favours_frontal_views() -> None:
    cosine = np.array([1.0, 0.5, 0.3, 0.1])
    valid = OBJECT_BLEND.valid(np.zeros(4), cosine, np.zeros(4))
    assert valid.tolist() == [True, True, True, False]
    masks = np.array([1.0, 0.95, 0.9, 1.0])
    assert OBJECT_BLEND.valid(np.zeros(4), cosine, np.zeros(4), masks).tolist() == [True, True, False, False]
    np.testing.assert_allclose(OBJECT_BLEND.weight(cosine, valid), [1, 0.125, 0.027, 0])
