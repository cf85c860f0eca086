from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, cpu, tiny_coarse
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.coarse_volume import DEPTHS, DISTANCE, HALF_EXTENT, REACH, shuffle
from threedgen.guidance.priors.mvdream import MVDream

SIDE = 16


def trained(**options: Any) -> CoarsePredictor:
    """A tiny predictor whose volume has an effect, as after training."""
    coarse = tiny_coarse(**options)
    for layer in coarse.volume.out:
        nn.init.normal_(layer.weight)
    return coarse


def predictor() -> CoarsePredictor:
    return trained(size=SIDE, volume=(8, 8, 8))


def poses(*azimuths: float, elevation: float = 20.0) -> torch.Tensor:
    angles = np.deg2rad(azimuths)
    return torch.from_numpy(orbit_array(np.full(len(angles), np.deg2rad(elevation)), angles, DISTANCE)).float()


@torch.no_grad()
def test_views_of_an_object_are_those_of_separate_calls() -> None:
    coarse, camera = predictor(), camera_vector(poses(0, 90, 180, 270))
    text = torch.randn(2, 5, TEXT_WIDTH, generator=cpu()).repeat_interleave(2, 0)
    code = torch.randn(2, TEXT_WIDTH, generator=cpu()).repeat_interleave(2, 0)
    together = coarse(text, camera, code, 2)
    assert together.shape == (4, 4, SIDE, SIDE)
    torch.testing.assert_close(together, coarse(text, camera, code))
    for other in (coarse(text, camera, -code), coarse(text.flip(0), camera, code), coarse(text, camera.flip(0), code)):
        assert ((other - together).flatten(1).abs().amax(1) > 1e-4).all()
    alone = coarse(text, None, code, 2)
    torch.testing.assert_close(alone[0], alone[1], msg="without a camera, views are equal")


@torch.no_grad()
def test_loaded_predictor_samples_its_volume_at_the_same_points(tmp_path: Path) -> None:
    coarse, camera = trained(volume=(8, 8)), camera_vector(poses(0, 90, 180, 270))
    coarse_prior(coarse).save(tmp_path / "prior")
    loaded = MVDream.load(tmp_path / "prior").coarse
    text, code = torch.randn(4, 5, TEXT_WIDTH, generator=cpu()), torch.randn(4, TEXT_WIDTH, generator=cpu())
    assert torch.equal(loaded.volume.points(camera), coarse.volume.points(camera))
    torch.testing.assert_close(loaded(text, camera, code), coarse(text, camera, code), atol=0.01, rtol=0.01)


def test_prior_computes_one_volume_per_object(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = trained(volume=(8, 8))
    prior, c2w, counts, volume = coarse_prior(coarse), poses(0, 90, 180, 270), list[int](), coarse.volume.volume

    def counted(mixed: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        counts.append(len(text))
        return volume(mixed, text)

    monkeypatch.setattr(coarse.volume, "volume", counted)
    text = prior.encode_prompt(["a red dog", "a blue cat"]).repeat_interleave(2, 0)
    found = prior.predict_coarse(text, c2w)
    single = torch.cat([prior.predict_coarse(text[k : k + 1], c2w[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(found, single)
    prior.predict_coarse(text[:3], c2w[:3])
    assert counts == [2, 1, 1, 1, 1, 3]


@torch.no_grad()
def test_new_volume_changes_no_prediction() -> None:
    before, after = tiny_coarse(), tiny_coarse()
    after.add_volume([8, 8])
    text, camera = torch.randn(2, 5, TEXT_WIDTH, generator=cpu()), camera_vector(poses(0, 90))
    assert torch.equal(before(text, camera), after(text, camera)) and after.config["volume"] == (8, 8)
    kept = after.volume
    after.add_volume((8, 8))
    assert after.volume is kept


def test_samples_lie_on_the_rays_of_the_pixels_from_near_to_far() -> None:
    volume, c2w = predictor().volume, poses(30, 200, elevation=-10)
    points = REACH * volume.points(camera_vector(c2w))
    focal = 0.5 * SIDE * DISTANCE / HALF_EXTENT
    K = torch.tensor([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]]).expand(2, 3, 3)
    origins, directions = Cameras(c2w, Projection(K), SIDE, SIDE).rays()
    offsets = points - origins[:, None]
    distance = offsets.norm(dim=-1)
    along = directions / directions.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(offsets / distance[..., None], along[:, None].expand_as(offsets), atol=1e-5, rtol=0)
    assert (distance.diff(dim=1) > 0).all() and points.shape[1] == DEPTHS
    assert points.norm(dim=-1).min() < 0.15, "the rays meet the object"


@pytest.mark.parametrize("azimuth", [0, 90, 180, 270])
def test_opaque_features_hide_those_behind_them(azimuth: float) -> None:
    features, camera = predictor().volume, camera_vector(poses(azimuth, elevation=0))[None]
    volume = torch.zeros(1, 9, SIDE, SIDE, SIDE)
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    volume[:, -1, middle, middle, middle] = 20  # an opaque cube
    volume.requires_grad_()
    centre = features.project(volume, camera)[..., SIDE // 2, SIDE // 2].square().sum()
    (grad,) = torch.autograd.grad(centre, volume)
    seen = grad[0, :-1].abs().sum((0, 3))  # over features and z
    rows = seen if azimuth % 180 == 0 else seen.T
    rows = rows.sum(1) if azimuth < 180 else rows.sum(1).flip(0)
    front, back = rows[SIDE // 2 :].sum(), rows[: SIDE // 2].sum()
    assert front > 3 * back > 0


def test_shuffle_moves_eight_channels_to_a_cube() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    torch.testing.assert_close(shuffle(x)[0, 0], torch.arange(8.0).reshape(2, 2, 2))
    assert shuffle(torch.zeros(2, 24, 3, 3, 3)).shape == (2, 3, 6, 6, 6)
