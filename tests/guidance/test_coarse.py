"""Coarse predictor of a prior: inputs, samples, saved folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.errors import refused
from tests.support.script_poses import script_poses
from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, cpu, output, tiny_coarse, tiny_prior
from threedgen.guidance.coarse import camera_harmonics
from threedgen.guidance.priors.mvdream import MVDream, camera_vector


@torch.no_grad()
def test_each_image_depends_on_its_own_text_and_camera() -> None:
    coarse, text = tiny_coarse(), torch.randn(3, 5, TEXT_WIDTH, generator=cpu())
    camera = camera_vector(script_poses(3))
    whole = coarse(text, camera)
    assert whole.shape == (3, 4, 8, 8)
    single = torch.cat([coarse(text[i : i + 1], camera[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single)
    for other in (coarse(text.roll(1, 0), camera), coarse(text, camera.roll(1, 0)), coarse(text, None)):
        assert ((other - whole).flatten(1).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(*coarse(text[:1].repeat(2, 1, 1), None), msg="without a camera images are equal")


@pytest.mark.parametrize("elevation", [-30.0, 0.0, 45.0])
def test_camera_harmonics_turn_with_the_azimuth(elevation: float) -> None:
    """A quarter turn multiplies the k-th pair by i^k; the distance has no effect."""
    poses = script_poses(4, elevation)
    found = camera_harmonics(camera_vector(poses))
    numbers = torch.complex(found[:, :4], found[:, 4:8])
    turned = numbers * torch.tensor([1j, -1, -1j, 1])
    torch.testing.assert_close(turned, numbers.roll(-1, 0), atol=1e-5, rtol=0)
    poses[:, :3, 3] *= 7
    torch.testing.assert_close(camera_harmonics(camera_vector(poses)), found)


def test_saved_prior_keeps_coarse_predictor(tmp_path: Path) -> None:
    prior = coarse_prior()
    prior.save(tmp_path / "prior")
    again = MVDream.load(str(tmp_path / "prior"), dtype="fp32")
    assert again.coarse is not None and not any(p.requires_grad for p in again.coarse.parameters())
    torch.testing.assert_close(output(again), output(prior), atol=2e-2, rtol=0)  # float16 on the disk
    again.save(tmp_path / "again")
    first, second = ((tmp_path / name / "SHA256SUMS").read_text().split("\n") for name in ("prior", "again"))
    files = [line for line in first if " coarse/" in line]
    assert len(files) == 2 and files == [line for line in second if " coarse/" in line]
    tiny_prior().save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "coarse").exists()
    assert MVDream.load(str(tmp_path / "plain")).coarse is None


def test_samples_depend_on_coarse_predictor_and_may_have_another_size() -> None:
    prior, other, c2w = coarse_prior(), tiny_coarse(), script_poses(2)
    with torch.no_grad():
        other.out.bias.add_(1)
    a, b = (p.sample("a dog", c2w, steps=2, generator=cpu()) for p in (prior, coarse_prior(other)))
    assert a.shape == (2, 16, 16, 3) and (a - b).abs().max() > 1e-3
    parts = prior.unet, prior.vae, prior.text_encoder, prior.tokenizer
    large = MVDream(*parts, coarse=prior.coarse, image_size=32, dtype="fp32")
    assert large.sample("a dog", c2w, steps=2, generator=cpu()).shape == (2, 32, 32, 3)


def test_coarse_predictor_refuses_sizes_that_do_not_fit() -> None:
    with refused(None, "size", 6, kind=ValueError):
        tiny_coarse(size=6, channels=(8, 8, 8), blocks=(0, 1, 1))
    with refused(None, (1,), kind=ValueError):
        tiny_coarse(blocks=(1,))


def test_load_refuses_changed_or_missing_coarse_predictor(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    config = tmp_path / "coarse" / "config.json"
    entries = json.loads(config.read_text())
    for change, values in (({"width": 64}, ["coarse predictor"]), ({"_class_name": "Sketch"}, ["coarse", "Sketch"])):
        config.write_text(json.dumps(entries | change))
        with refused(None, *values):
            MVDream.load(str(tmp_path))
    shutil.rmtree(tmp_path / "coarse")
    with refused(None, 4, 8):
        MVDream.load(str(tmp_path))
