from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from tests.support.errors import refused
from tests.support.parity_files import parity_files
from tests.support.photographs import SIZE, photographs
from tests.support.tiny_classifiers import tiny_probe
from tests.support.tiny_mvadapter import tiny_prior_config
from threedgen.config import registry
from threedgen.evaluation.consistency import fits
from threedgen.evaluation.consistency.options import MVAdapterSamplerConfig, MVDreamSamplerConfig, ProbeWeightsConfig
from threedgen.evaluation.consistency.run import feature_distances
from threedgen.evaluation.consistency.scenes import (
    MVAdapterSampler,
    MVDreamSampler,
    Scene,
    camera_warnings,
    held_out_views,
)
from threedgen.evaluation.consistency.tsed import detect, fundamental, judge, match, symmetric_epipolar_distance, tsed
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import psnr
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views


def test_psnr_and_ssim() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 2, 16, 16, 3))
    assert psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)) == pytest.approx(20)
    same, far = fits.compare(one, one), fits.compare(one, other)
    assert same["psnr"] == [100, 100] and same["ssim"] == pytest.approx([1, 1])
    how = {"data_range": 1, "channel_axis": -1, "gaussian_weights": True, "use_sample_covariance": False}
    pairs = zip(one, other, strict=True)
    assert far["ssim"] == pytest.approx([structural_similarity(*pair, **how) for pair in pairs], abs=1e-9)
    assert (fits.compare(one, 1 - one)["ssim"][0] or 0) < 0
    assert fits.compare(one[:, :8], one[:, :8])["ssim"] == [None, None]


def test_feature_distances_of_equal_and_darker_renders(tmp_path: Path) -> None:
    """Darker renders have a higher FID and KID than equal ones."""
    tiny_probe().save(tmp_path / "toybox-probe.safetensors")
    features = registry.build("features", ProbeWeightsConfig(weights=str(tmp_path)).features())
    held = np.random.default_rng(0).integers(0, 255, (12, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "a.sampled.npz", held=held, render=held // 2)
    np.savez(tmp_path / "a.original.npz", held=held, render=held)
    scores = {row: [{"scene": "a", "row": row}] for row in ("sampled", "original")}
    found = feature_distances(features, tmp_path, scores)
    same, darker = found["original"], found["sampled"]
    assert same["pictures"] == 12 and darker["fid"]["mean"] > 1e-3 > 10 * abs(same["fid"]["mean"])
    assert darker["kid"]["mean"] > same["kid"]["mean"] and darker["fid"]["low"] is None  # one scene


def scene(count: int = 24) -> Scene:
    at = photographs().cameras if count == 24 else orbit(count, 0.2, 2.6, 0.7, SIZE, SIZE)
    return Scene("one", at, tuple(range(count)))


def test_held_out_views_are_never_given_and_targets_go_outward_from_the_given_view() -> None:
    views = held_out_views(scene(251), 0)
    two = Scene("two", photographs().cameras.select([0] * 251), tuple(range(251)))
    assert len(set(views)) == 25 and views == held_out_views(two, 0) != held_out_views(scene(251), 1)
    few = scene()
    for given in range(24):
        assert given not in held_out_views(replace(few, condition=(given,)), 0, 0.5)
    with refused(None, "one", 4):
        held_out_views(scene(4), 0, 0.85)
    at = photographs(6).cameras
    assert Scene("a", at, tuple(range(6)), (2,)).targets == [3, 4, 5, 1, 0]
    assert Scene("a", at, tuple(range(6))).targets == [0, 1, 2, 3, 4, 5]
    given = Scene("a", at, (10, 11, 12, 13, 14, 15), (1, 4))
    assert given.targets == [5, 3, 2, 0]
    request = given.request(0, with_images=False)
    sampled = torch.tensor(request.numbers).float()[:, None, None, None].expand(4, SIZE, SIZE, 3)
    assert given.all_views(request, sampled).images[[0, 2, 3, 5], 0, 0, 0].tolist() == [10, 12, 13, 15]


NOISE = 0.1 * torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shift", "turn", "warns"),
    [
        (NOISE, lambda c2w: c2w, False),
        (torch.tensor([0.0, 2.0, 0.0]), lambda c2w: c2w, True),  # beside the origin
        (0, opencv_axes, True),  # look away
        (NOISE, lambda c2w: opencv_axes(opencv_axes(c2w).inverse()), True),  # world to camera: near each other
    ],
)
def test_cameras_that_do_not_look_at_the_origin_warn(shift: Any, turn: Any, warns: bool) -> None:
    at = scene().cameras
    c2w = at.c2w.clone()
    c2w[:, :3, 3] += shift
    assert len(camera_warnings(replace(scene(), cameras=replace(at, c2w=turn(c2w))))) == warns


class Compass:
    def sample(self, text: str, c2w: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        angle = torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]).remainder(2 * torch.pi) / (2 * torch.pi)
        return angle[:, None, None, None].expand(-1, 4, 4, 3)


def test_grouped_views_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "build", lambda *words: Compass())
    monkeypatch.setattr(MVDreamSamplerConfig, "together", 4)
    sampler = MVDreamSampler(MVDreamSamplerConfig())
    at = orbit(10, 0.2, 2.0, 0.7, 4, 4)
    (images,) = sampler([Request("one", None, at, tuple(range(10)), "a dog")])
    assert torch.allclose(images[:, 0, 0, 0], torch.arange(10) / 10, atol=1e-4)


def test_adapter_samples_from_the_given_view(tmp_path: Path) -> None:
    prior = tiny_prior_config(tmp_path)
    sampler = MVAdapterSampler(MVAdapterSamplerConfig(prior=prior, together=2, steps=1))
    at = orbit(4, 0.2, 2.0, 0.7, 16, 16)
    image = torch.ones(1, 16, 16, 3)
    image[:, 4:12, 5:11] = torch.tensor([0.8, 0.1, 0.1])
    given = Request("one", Views(image, at.select([0])), at.select([1, 2, 3]), (1, 2, 3))
    (from_image,), (from_text,) = sampler([given]), sampler([replace(given, condition=None, text="a red dog")])
    assert from_image.shape == from_text.shape == (3, 16, 16, 3) and not torch.allclose(from_image, from_text)
    assert torch.equal(sampler([given])[0], from_image)
    image[:] = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    with refused("image", "one"):
        sampler([given])


FILES = parity_files("metric_tsed")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parity(file: Path) -> None:
    recorded = np.load(file, allow_pickle=False)
    poses, focal = recorded["in:poses_c2w"], 256 * float(recorded["in:focal_y"])
    K = torch.tensor([[focal, 0, 128], [0, focal, 128], [0, 0, 1]], dtype=torch.float64).expand(len(poses), 3, 3)
    at = Cameras(torch.from_numpy(poses).double(), Projection(K), 256, 256)
    found = []
    for k, F in enumerate(fundamental(at.select(slice(0, -1)), at.select(slice(1, None)))):
        found.append(symmetric_epipolar_distance(recorded[f"in:matches_{k}"], F))
        np.testing.assert_allclose(found[-1], recorded[f"out:sed_{k}"], atol=1e-6, rtol=0)
    pairs = judge(found, float(recorded["in:t_error"]), int(recorded["in:t_matches"]))
    assert (pairs.consistent, pairs.total) == (int(recorded["out:n_consistent"]), len(found))
    (same,) = fundamental(at.select([0]), at.select([0]))  # no line between cameras in one place
    assert np.isinf(symmetric_epipolar_distance(recorded["in:matches_0"], same)).all()


def shifted(step: int) -> Views:
    """A textured wall at distance 1 in three cameras ``step`` pixels apart."""
    size, focal = 64, 64.0
    wall = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    wall = torch.nn.functional.interpolate(wall, (size, 110), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    c2w = torch.eye(4).repeat(3, 1, 1)
    c2w[:, 0, 3] = torch.arange(3) * step / focal
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]).expand(3, 3, 3)
    images = torch.stack([wall[:, k * step : k * step + size] for k in range(3)])
    return Views(images, Cameras(c2w, Projection(K), size, size))


def test_tsed_of_a_wall_and_of_blank_images() -> None:
    views = shifted(8)
    assert tsed(views, 24).share == 1
    up = views.cameras.c2w.clone()
    up[:, :2, 3] = up[:, :2, 3].flip(-1)  # cameras that are said to climb, with the pictures of those that go right
    wrong = tsed(Views(views.images, Cameras(up, Projection(views.cameras.K), 64, 64)), 24)
    assert wrong.share == 0 and min(wrong.matches) >= 10
    blank = detect(np.full((32, 32, 3), 128, np.uint8))
    assert blank is None and match(blank, blank).shape == (0, 4)
