from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.errors import refused
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from threedgen import config
from threedgen.geometry.image_file import read_foreground
from threedgen.geometry.views import framed
from threedgen.guidance.attention.joined import SEPARATE_LEVELS
from threedgen.guidance.matte import Matte, remover
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.task import embeddings, run_once
from threedgen.systems.generate.views import (
    IMAGE_WEIGHT,
    MEAN_OBJECT_SIZE,
    OBJECT_SIZES,
    best_object_size,
    first_view,
    sample_views,
)
from threedgen.train.status import Status
from threedgen.train.task import Task

SHORT = ("preview.steps=2", "preview.elevation=20", "preview.azimuth=30", "warm_start.share=0.5", "warm_start.groups=3")


def views_of(options: GenerateConfig, prior: MVDream, prompt: str, folder: Path) -> tuple[Any, Any]:
    image = first_view(options, prior)
    return sample_views(options, prior, prior.encode_prompt([prompt, ""]), image, folder, quiet=True)


@pytest.fixture
def prior() -> MVDream:
    prior = tiny_prior()
    prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    return prior


def test_groups_are_completed_from_the_first_if_the_prior_can(prior: MVDream, tmp_path: Path, caplog) -> None:
    options = config.load("mvdream-toybox", [*SHORT, "prompt=a red dog", "result.turntable.distance=5"])
    views, cameras = views_of(options, prior, "a red dog", tmp_path)
    assert views.shape == (12, 16, 16, 3) and len(cameras) == 12
    torch.testing.assert_close(cameras.position.norm(dim=1), torch.full((12,), 2.6))
    x, y, z = cameras.position.T
    azimuth, elevation = torch.atan2(y, x).rad2deg() % 360, torch.asin(z / cameras.position.norm(dim=1)).rad2deg()
    torch.testing.assert_close(azimuth.sort().values, torch.arange(12) * 30.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(azimuth[:4], torch.tensor([30.0, 120, 210, 300]), atol=1e-3, rtol=0)
    torch.testing.assert_close(elevation[:4], torch.full((4,), 20.0), atol=1e-3, rtol=0)
    assert elevation[4:].min() > -1e-3 and elevation[4:].max() < 30
    again, _ = views_of(options, prior, "another prompt", tmp_path)
    assert torch.equal(again, views), "a resumed run reads them"
    (tmp_path / "single").mkdir()
    views, cameras = views_of(options, tiny_prior(), "a red dog", tmp_path / "single")
    assert len(views) == len(cameras) == 4
    assert "warm_start.groups=3" in caplog.text


def test_views_of_an_image_are_completed_from_it(prior: MVDream, tmp_path: Path) -> None:
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[10:30, 10:50] = (255, 0, 0, 255)  # a red bar: 40 of 60 pixels
    Image.fromarray(rgba).save(tmp_path / "bar.png")
    options = config.load("mvdream-toybox", [*SHORT, f"image={tmp_path / 'bar.png'}"])
    views, cameras = views_of(options, prior, "", tmp_path)
    assert len(views) == len(cameras) == 12 + IMAGE_WEIGHT - 1
    assert all(torch.equal(view, views[0]) for view in views[1:IMAGE_WEIGHT])
    assert not torch.equal(views[IMAGE_WEIGHT], views[0])
    shown = (views[0] - 0.5).abs().amax(-1) > 0.25
    assert shown.any(0).sum() in (10, 11, 12) and shown.any(1).sum() in (5, 6), "the bar fills 0.7 of the first view"
    assert views[0, 8, 8].tolist() == pytest.approx([1, 0, 0], abs=0.01)
    torch.testing.assert_close(views[0, 0, 0], torch.full((3,), 0.5))
    with refused("image"):
        views_of(options, tiny_prior(), "", tmp_path / "other")
    Matte(16, (4, 6)).save(tmp_path / "matte")  # of a photo without transparency, an untrained network leaves all
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "photo.png")
    photo = [*SHORT, f"image={tmp_path / 'photo.png'}", f"matte={tmp_path / 'matte'}"]
    (tmp_path / "photo").mkdir()
    views, _ = views_of(config.load("mvdream-toybox", photo), prior, "", tmp_path / "photo")
    cut = read_foreground(str(tmp_path / "photo.png"), remover(str(tmp_path / "matte")))
    assert 0 < cut[..., 3].mean() < 1
    assert torch.equal(views[0], framed(torch.from_numpy(cut), 16, 16, MEAN_OBJECT_SIZE))


def test_views_of_a_changed_image_are_sampled_again(prior: MVDream, tmp_path: Path, monkeypatch) -> None:
    found = list[tuple[torch.Tensor, str, bytes]]()

    def optimise(task: Task, _prior: object, _text: object, views: torch.Tensor, *rest: object) -> Status:
        found.append((views, task.weights["image"], (tmp_path / "preview.png").read_bytes()))
        return Status.FINISHED

    monkeypatch.setattr("threedgen.systems.generate.optimise.optimise", optimise)
    monkeypatch.setattr(Task, "load_prior", lambda task, compact: prior)
    monkeypatch.setattr(prior, "free_text_encoder", lambda: None)
    words = [f"image={tmp_path / 'bar.png'}", f"out={tmp_path}", "threads=1", "trainer.accelerator=cpu"]
    for colour in ((255, 0, 0, 255), (255, 0, 0, 255), (0, 0, 255, 255)):
        rgba = np.zeros((40, 60, 4), np.uint8)
        rgba[10:30, 10:50] = colour
        Image.fromarray(rgba).save(tmp_path / "bar.png")
        run_once(Task(config.load("mvdream-toybox", [*SHORT, *words]), quiet=True))
    (first, *same), (again, *same_again), (other, *changed) = found
    assert torch.equal(first, again) and same == same_again
    assert not torch.equal(first, other) and all(a != b for a, b in zip(same, changed, strict=True))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_size_of_an_image_is_that_which_the_prior_expects(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, cut, at = coarse_prior(), torch.ones(64, 64, 4), min(OBJECT_SIZES, key=lambda each: abs(each - share))
    expected = framed(cut, prior.image_size, prior.image_size, at).permute(2, 0, 1)

    def predicted(text: torch.Tensor, c2w: torch.Tensor, text_guidance: bool) -> torch.Tensor:
        return expected + 0.02 * torch.randn(len(c2w), *expected.shape, generator=cpu())

    def pixels(rgb: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return rgb.permute(0, 3, 1, 2)

    monkeypatch.setattr(prior, "encode_images", pixels)  # the tiny VAE is not trained
    monkeypatch.setattr(prior, "encode_code", lambda text, latents, c2w: text)
    options = config.load("mvdream-toybox", ["prompt=a dog"])
    assert best_object_size(options, tiny_prior(), cut) == MEAN_OBJECT_SIZE
    monkeypatch.setattr(prior, "coarse_latents", predicted)
    assert best_object_size(options, prior, cut) == at


@torch.no_grad()
def test_object_code_is_that_of_the_image(tmp_path: Path) -> None:
    prior, options = coarse_prior(), config.load("mvdream-toybox", ["prompt=a dog"])
    codes = []
    for name, colour in (("red", [0.9, 0.1, 0.1]), ("blue", [0.1, 0.1, 0.9])):
        (tmp_path / name).mkdir()
        image = torch.tensor(colour).expand(1, 16, 16, 3)
        codes.append(embeddings(options, prior, ["a dog", ""], image, tmp_path / name)[0, -1])
    assert codes[0].square().mean() == pytest.approx(1, abs=0.1) and (codes[0] - codes[1]).abs().max() > 1e-4
