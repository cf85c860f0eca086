"""The network that tells things from the grey behind them: its files, and what the embedded one sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from threedgen.config import ConfigError
from threedgen.data.toybox.grammar import Spec
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import Toybox, build
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.matte import Matte


def test_a_matte_is_read_as_it_was_saved_but_for_its_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    matte = Matte(16, (4, 6)).eval()
    matte.save(tmp_path / "matte")
    found, x = Matte.load(str(tmp_path / "matte")), torch.rand(3, 16, 16, 3)
    torch.testing.assert_close(found.opacity(x), matte.opacity(x), atol=2e-3, rtol=0)
    assert not any(p.requires_grad for p in found.parameters()) and not found.training


@pytest.mark.parametrize("shape", [(1, 16, 16), (20, 32, 32), (2, 7, 7), (2, 12, 20)])
def test_pictures_may_have_any_size_and_number(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    found = Matte(16, (4, 6)).eval().opacity(torch.rand(*shape, 3))
    assert found.shape == shape and found.min() >= 0 and found.max() <= 1


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="12 should be a multiple"):
        Matte(12, (4, 4, 4))


def test_what_is_no_matte_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no matte 'nowhere'; take toybox-matte, or the folder RUN/matte"):
        Matte.load("nowhere")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ConfigError, match="describes 'AutoencoderKL', not a matte"):
        Matte.load(str(tmp_path))
    folder = tmp_path / "m"
    Matte(16, (4, 6)).save(folder)
    sums, config = folder / "SHA256SUMS", folder / "config.json"
    text = config.read_text()
    sums.unlink()
    config.write_text(text.replace("16", "1600000"))
    with pytest.raises(ConfigError, match="1600000 should be a multiple"):
        Matte.load(str(folder))
    config.write_text(text)
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ConfigError):
        Matte.load(str(folder))


def on_grey(assets: list, count: int, grey: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of things from all around before a grey, and how opaque they are there."""
    which = np.repeat(np.arange(len(assets)), count)
    azimuth = np.tile(np.linspace(0, 2 * np.pi, count, endpoint=False), len(assets))
    c2w = orbit_array(np.full(len(which), 0.26), azimuth, 0.95 / np.tan(np.deg2rad(20)))
    scene = (assets, which, c2w, np.full(len(which), np.deg2rad(40.0)), 128)
    picture, black, white = (torch.from_numpy(render(*scene, background).rgb) for background in (grey, 0.0, 1.0))
    return picture, 1 - (white - black).mean(-1)


def overlap(matte: Matte, picture: torch.Tensor, truth: torch.Tensor) -> float:
    found = matte.opacity(picture) > 0.5
    return float((found & (truth > 0.5)).sum() / (found | (truth > 0.5)).sum())


def test_the_embedded_one_finds_things_that_no_training_saw() -> None:
    box = Toybox(77, "held-out")
    assert overlap(Matte.load("toybox-matte"), *on_grey([box.asset(i) for i in range(8)], 3, 0.45)) > 0.95


def test_it_finds_grey_things_before_a_grey_of_their_own_brightness() -> None:
    rng = np.random.default_rng(3)
    things = [build(Spec(noun, "grey", "", ""), rng) for noun in ("robot", "rocket", "bear", "rabbit")]
    picture, truth = on_grey(things, 4, 0.5)
    solid = truth > 0.5
    alike = solid & ((picture - 0.5).abs().amax(-1) < 0.03)
    assert alike.sum() > 200, "nothing here has the colour behind it"
    found = Matte.load("toybox-matte").opacity(picture) > 0.5
    assert found[alike].float().mean() > 0.8
