"""What the consistency score is made of: its figures, which views are held out and drawn, cameras that are doubted."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from tests.support.errors import refused
from tests.support.photographs import SIZE, photographs
from tests.support.tiny_classifiers import tiny_probe
from tests.support.tiny_mvadapter import tiny_prior_config
from threedgen.config import registry
from threedgen.evaluation.consistency import fits
from threedgen.evaluation.consistency.options import MVAdapterSamplerConfig, MVDreamSamplerConfig
from threedgen.evaluation.consistency.report import distances
from threedgen.evaluation.consistency.samplers import MVAdapterSampler, MVDreamSampler
from threedgen.evaluation.consistency.scenes import Scene, held_out_places, looked_at, prompt_warnings
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import psnr
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views

# --- figures -----------------------------------------------------------------------------------------------------


def test_psnr_and_ssim() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 2, 16, 16, 3))
    assert psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)) == pytest.approx(20)
    same, far = fits.compared(one, one), fits.compared(one, other)
    assert same["psnr"] == [100, 100] and same["ssim"] == pytest.approx([1, 1])
    how = {"data_range": 1, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
    pairs = zip(one, other, strict=True)
    assert far["ssim"] == pytest.approx([structural_similarity(*pair, **how) for pair in pairs], abs=1e-9)
    assert (fits.compared(one, 1 - one)["ssim"][0] or 0) < 0
    assert fits.compared(one[:, :8], one[:, :8])["ssim"] == [None, None]


def test_distances_on_a_probe_tell_pictures_apart(tmp_path: Path) -> None:
    """Equal sets have FID 0; renders of another brightness have more, and more KID than equal ones."""
    probe = tiny_probe().eval()
    held = np.random.default_rng(0).integers(0, 255, (12, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "a.sampled.npz", held=held, render=held // 2)
    np.savez(tmp_path / "a.original.npz", held=held, render=held)
    scores = [{"scene": "a", "row": row, "held_out": list(range(12))} for row in ("sampled", "original")]
    found = distances(probe, tmp_path, scores)
    same, darker = found["original"], found["sampled"]
    assert same["pictures"] == 12 and darker["fid"] > 1e-3 > 10 * abs(same["fid"]) and darker["kid"] > same["kid"]


# --- which views -------------------------------------------------------------------------------------------------


def scene(count: int = 24) -> Scene:
    at = photographs().cameras if count == 24 else orbit(count, 0.2, 2.6, 0.7, SIZE, SIZE)
    return Scene("one", at, tuple(range(count)))


def test_the_same_views_are_held_out_everywhere_and_never_the_given_one() -> None:
    places = held_out_places(scene(251), 0.1, 0)
    two = Scene("two", photographs().cameras.select([0] * 251), tuple(range(251)))
    assert len(set(places)) == 25 and places == held_out_places(two, 0.1, 0)
    assert places != held_out_places(scene(251), 0.1, 1)
    few = scene()
    for given in range(24):
        assert given not in held_out_places(replace(few, condition=(given,)), 0.5, 0)
    with refused(None, "one", 4):
        held_out_places(scene(4), 0.85, 0)


def test_views_are_drawn_outward_from_the_given_one() -> None:
    at = photographs(6).cameras
    assert Scene("a", at, tuple(range(6)), (2,)).targets == [3, 4, 5, 1, 0]
    assert Scene("a", at, tuple(range(6))).targets == [0, 1, 2, 3, 4, 5]
    given = Scene("a", at, (10, 11, 12, 13, 14, 15), (1, 4))
    assert given.targets == [5, 3, 2, 0]
    request = given.request(0, pictures=False)
    drawn = torch.tensor(request.numbers).float()[:, None, None, None].expand(4, SIZE, SIZE, 3)
    assert given.together(request, drawn).images[[0, 2, 3, 5], 0, 0, 0].tolist() == [10, 12, 13, 15]


def test_doubtful_cameras_are_said(caplog: pytest.LogCaptureFixture) -> None:
    at = scene().cameras
    assert torch.allclose(looked_at(at), torch.zeros(3), atol=1e-4)
    aside = at.c2w.clone()
    aside[:, :3, 3] += torch.tensor([0.0, 2.0, 0.0])
    there = Scene("one", Cameras(aside, Projection(at.K), SIZE, SIZE), tuple(range(24)))
    assert torch.allclose(looked_at(there.cameras), torch.tensor([0.0, 2.0, 0.0]), atol=1e-4)
    with caplog.at_level(logging.WARNING):
        assert len(prompt_warnings(there)) == 1
    assert "fitted around the origin" in caplog.text and prompt_warnings(scene()) == []


def test_poses_of_another_convention_are_asked_about() -> None:
    """Axes of OpenGL look away; world-to-camera poses of cameras that aim a little beside the origin are near each
    other, but not in one place."""
    at = scene().cameras
    (said,) = prompt_warnings(replace(scene(), cameras=replace(at, c2w=opencv_axes(at.c2w))))
    assert "OpenGL" in said and "Negate the second and the third column" in said
    shaken = at.c2w.clone()
    shaken[:, :3, 3] += 0.1 * torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    inverse = opencv_axes(opencv_axes(shaken).inverse())
    (said,) = prompt_warnings(replace(scene(), cameras=replace(at, c2w=inverse)))
    assert "if the poses were world-to-camera" in said and "OpenGL" not in said
    assert prompt_warnings(replace(scene(), cameras=replace(at, c2w=shaken))) == []


# --- samplers ----------------------------------------------------------------------------------------------------


class Compass:
    """A prior whose pictures show the azimuth they were asked for."""

    def sample(self, text: str, c2w: torch.Tensor, *rest: Any) -> torch.Tensor:
        angle = torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]).remainder(2 * torch.pi) / (2 * torch.pi)
        return angle[:, None, None, None].expand(-1, 4, 4, 3)


def test_views_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "build", lambda *words: Compass())
    sampler = MVDreamSampler(MVDreamSamplerConfig(together=4))
    at = orbit(10, 0.2, 2.0, 0.7, 4, 4)
    (pictures,) = sampler([Request("one", None, at, tuple(range(10)), "a dog")])
    assert torch.allclose(pictures[:, 0, 0, 0], torch.arange(10) / 10, atol=1e-4)


def test_an_adapter_draws_from_the_given_view(tmp_path: Path) -> None:
    prior = tiny_prior_config(tmp_path)
    sampler = MVAdapterSampler(MVAdapterSamplerConfig(prior=prior, together=2, steps=1))
    at = orbit(4, 0.2, 2.0, 0.7, 16, 16)
    picture = torch.ones(1, 16, 16, 3)
    picture[:, 4:12, 5:11] = torch.tensor([0.8, 0.1, 0.1])
    given = Request("one", Views(picture, at.select([0])), at.select([1, 2, 3]), (1, 2, 3))
    (drawn,), (unseen,) = sampler([given]), sampler([replace(given, condition=None, text="a red dog")])
    assert drawn.shape == unseen.shape == (3, 16, 16, 3) and not torch.allclose(drawn, unseen)
    assert torch.equal(sampler([given])[0], drawn)
    picture[:] = torch.rand(picture.shape, generator=torch.Generator().manual_seed(0))
    with refused("image", "one"):
        sampler([given])
