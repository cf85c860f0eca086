"""The coarse predictor of a prior: who sees what, and folders with and without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.script_poses import script_poses
from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, cpu, output, tiny_coarse, tiny_prior
from threedgen.config import ConfigError
from threedgen.guidance.coarse import directions
from threedgen.guidance.priors.mvdream import MVDream, camera_vector


def test_each_picture_has_its_own_words_and_camera() -> None:
    coarse, text = tiny_coarse(), torch.randn(3, 5, TEXT_WIDTH, generator=cpu())
    camera = camera_vector(script_poses(3))
    with torch.no_grad():
        whole = coarse(text, camera)
        assert whole.shape == (3, 4, 8, 8)
        alone = torch.cat([coarse(text[i : i + 1], camera[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(whole, alone)
        for other in (coarse(text.roll(1, 0), camera), coarse(text, camera.roll(1, 0)), coarse(text, None)):
            assert ((other - whole).flatten(1).abs().amax(1) > 1e-3).all()


def test_without_a_camera_there_is_one_picture_for_all_of_them() -> None:
    text = torch.randn(1, 5, TEXT_WIDTH, generator=cpu()).repeat(2, 1, 1)
    with torch.no_grad():
        a, b = tiny_coarse()(text, None)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("elevation", [-30.0, 0.0, 45.0])
def test_directions_are_harmonics_of_the_azimuth(elevation: float) -> None:
    """A quarter turn multiplies the k-th pair by i to the power of k; distance has no effect."""
    poses = script_poses(4, elevation)
    found = directions(camera_vector(poses))
    numbers = torch.complex(found[:, :4], found[:, 4:8])
    turned = numbers * torch.tensor([1j, -1, -1j, 1])
    torch.testing.assert_close(turned, numbers.roll(-1, 0), atol=1e-5, rtol=0)
    poses[:, :3, 3] *= 7
    torch.testing.assert_close(directions(camera_vector(poses)), found)


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    prior = coarse_prior()
    prior.save(tmp_path / "prior")
    again = MVDream.load(str(tmp_path / "prior"), dtype="fp32")
    assert again.coarse is not None and not any(p.requires_grad for p in again.coarse.parameters())
    torch.testing.assert_close(output(again), output(prior), atol=2e-2, rtol=0)  # float16 on the disk
    again.save(tmp_path / "again")
    first, second = ((tmp_path / name / "SHA256SUMS").read_text().split("\n") for name in ("prior", "again"))
    mine = [line for line in first if " coarse/" in line]
    assert len(mine) == 2 and mine == [line for line in second if " coarse/" in line]


def test_a_prior_without_it_has_no_such_folder(tmp_path: Path) -> None:
    tiny_prior().save(tmp_path / "prior")
    assert not (tmp_path / "prior" / "coarse").exists()
    assert MVDream.load(str(tmp_path / "prior")).coarse is None


def test_samples_depend_on_it() -> None:
    prior, other = coarse_prior(), tiny_coarse()
    with torch.no_grad():
        other.out.bias.add_(1)
    c2w = script_poses(2)
    a, b = (p.sample("a dog", c2w, steps=2, generator=cpu()) for p in (prior, coarse_prior(other)))
    assert a.shape == (2, 16, 16, 3) and (a - b).abs().max() > 1e-3


def test_pictures_of_another_size_than_its_own() -> None:
    prior, c2w = coarse_prior(), script_poses(2)
    large = MVDream(
        prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, coarse=prior.coarse, image_size=32, dtype="fp32"
    )
    assert large.sample("a dog", c2w, steps=2, generator=cpu()).shape == (2, 32, 32, 3)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for coarse, said in (
        (tiny_coarse(text_width=28), "24 features per token of the text encoder, 28 text features"),
        (tiny_coarse(size=16), "8 latents per side of the UNet, 16 of the coarse predictor"),
        (
            tiny_coarse(latent_channels=3),
            "7 channels of the VAE's latents and the coarse predictor, 8 channels that the UNet",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            coarse_prior(coarse)
    with pytest.raises(ValueError, match="size 6 should be a multiple of"):
        tiny_coarse(size=6, channels=(8, 8, 8), blocks=(0, 1, 1))
    with pytest.raises(ValueError, match="one value for each level"):
        tiny_coarse(blocks=(1,))


def test_a_lost_or_foreign_part_is_said(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path / "prior")
    folder = tmp_path / "prior"
    (folder / "SHA256SUMS").unlink()
    config = folder / "coarse" / "config.json"
    kept = json.loads(config.read_text())
    config.write_text(json.dumps(kept | {"width": 64}))
    with pytest.raises(ConfigError, match="coarse predictor is of another architecture"):
        MVDream.load(str(folder))
    config.write_text(json.dumps(kept | {"_class_name": "Sketch"}))
    with pytest.raises(ConfigError, match="describes a 'Sketch', not a CoarsePredictor"):
        MVDream.load(str(folder))
    for file in (folder / "coarse").iterdir():
        file.unlink()
    (folder / "coarse").rmdir()
    with pytest.raises(ConfigError, match="4 channels of the VAE's latents, 8 channels that the UNet takes"):
        MVDream.load(str(folder))
