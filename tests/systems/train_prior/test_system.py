"""What the models of the toybox learn from in a step, and what captions are learnt by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from tests.support.task_server import TINY_BASE
from tests.support.tiny_prior import tiny_prior, tiny_vae
from tests.systems.train_prior.test_task import banks, tiny, tmp_config
from threedgen import config
from threedgen.data.bank import LatentBank
from threedgen.data.toybox.pictures import Photographs
from threedgen.data.toybox.words import train_tokenizer
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.systems.train_prior import autoencoder
from threedgen.systems.train_prior import system as unets
from threedgen.systems.train_prior.options import (
    AutoencoderConfig,
    DecoderConfig,
    NetworkConfig,
    TrainPriorConfig,
    WordsConfig,
)
from threedgen.systems.train_prior.words import WordsSystem, text_encoder


@pytest.fixture
def standard_vae() -> AutoencoderKL:
    """One whose latents have unit variance."""
    vae = tiny_vae()
    autoencoder.standardise(vae, torch.from_numpy(Photographs(5).block(range(16), 16).rgb))
    return vae


def test_the_decoder_learns_to_decode_noisy_latents(standard_vae: AutoencoderKL) -> None:
    """Pictures of noisy latents become better; the encoder, whose latents others have learnt, stays."""
    pictures = AutoencoderConfig(image_size=32, crop=16, batch=4, bf16=False)
    rate = {"0%": 3e-3, "100%": 1e-3}
    system = autoencoder.DecoderSystem(DecoderConfig(max_steps=40, learning_rate=rate), pictures, 0, standard_vae)
    before = {name: value.clone() for name, value in standard_vae.state_dict().items()}
    made = system.configure_optimizers()
    losses = []
    for step in range(40):
        made["optimizer"].zero_grad()
        losses.append(system.training_step(step, step))
        losses[-1].backward()
        made["optimizer"].step()
    assert sum(losses[-5:]).item() < 0.9 * sum(losses[:5]).item()
    changed = {name for name, value in standard_vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_captions_are_told_apart_after_a_few_steps(tmp_path: Path, standard_vae: AutoencoderKL) -> None:
    """The loss falls below that of guessing among the captions of a step."""
    rate = {"0%": 0.0, "10%": 1e-3, "100%": 5e-4}
    options = WordsConfig(max_steps=60, batch=16, fresh=4, pictures=64, learning_rate=rate)
    bank, tokenizer = LatentBank(tmp_path, Photographs(5), standard_vae, 16, 96), train_tokenizer(32)
    torch.manual_seed(0)
    text = text_encoder(NetworkConfig(**TINY_BASE["network"]), tokenizer)
    system = WordsSystem(options, 0, text, tokenizer, bank)
    before = {name: value.clone() for name, value in text.state_dict().items()}
    made = system.configure_optimizers()
    for step in range(options.max_steps):
        made["optimizer"].zero_grad()
        loss = system.training_step(step, step)
        loss.backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert loss.item() < 0.6 * math.log(16)
    assert any(not torch.equal(value, before[name]) for name, value in text.state_dict().items())


@pytest.mark.parametrize(
    ("first", "pictures", "fresh"), [(18, 20, 2), (2, 40, 4), (50, 40, 2), (4, 40, 0), (38, 40, 2)]
)
@pytest.mark.parametrize("n_view", [1, 2])
def test_the_entries_of_a_step_are_always_there(
    tmp_path: Path, first: int, pictures: int, fresh: int, n_view: int
) -> None:
    words = [f"training.first={first}", f"training.pictures={pictures}", f"training.fresh={fresh}"]
    options: TrainPriorConfig = config.load(tmp_config(tmp_path), words)
    system = unets.DiffusionSystem(options, tiny_prior())
    seen: set[int] = set(range(first // n_view))
    for step in range(60):
        chosen = system.entries(step, n_view, 1.0)
        assert len(chosen) == 4 // n_view and chosen.min() >= 0 and chosen.max() < pictures // n_view
        new = {int(i) for i in chosen} - seen
        assert len(new) == min(fresh // n_view, pictures // n_view - len(seen & set(range(pictures // n_view))))
        assert new <= set(range(len(seen), len(seen) + 4))
        seen |= new


def test_a_share_of_the_steps_sees_pictures_of_half_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, seen = tiny_prior(), list[int]()

    def predict(x: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(x.shape[-1])
        return x * next(prior.unet.parameters()).mean()

    monkeypatch.setattr(prior, "predict", predict)
    sizes = [(0.25, 32), (0.75, 16)]
    of = [(share, LatentBank(tmp_path / f"{size}", Photographs(5), prior.vae, size, 40)) for share, size in sizes]
    system = unets.DiffusionSystem(config.load(tmp_config(tmp_path)), prior, *of)
    for step in range(40):
        system.training_step(step, step)
    side = 16 // prior.factor
    assert set(seen) == {side, 2 * side} and 22 <= seen.count(side) <= 38


def test_steps_are_of_joined_views_or_of_single_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: TrainPriorConfig = config.load(tmp_config(tmp_path), ["trainer.max_steps=40"])
    tuned = tiny_prior()
    asked: list[tuple[int, int, int | None]] = []  # pictures, how many are joined, their cameras

    def predict(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, camera: Any, n_view: int) -> torch.Tensor:
        assert len(text) == len(x) == len(t) == 4 and torch.equal(t, t[::n_view].repeat_interleave(n_view))
        asked.append((len(x), n_view, None if camera is None else len(camera)))
        return x * next(tuned.unet.parameters()).mean()

    monkeypatch.setattr(tuned, "predict", predict)
    system = unets.DiffusionSystem(options, tuned, *banks(tmp_path, tuned.vae, 16))
    for step in range(40):
        system.training_step(step, step)
    assert set(asked) == {(4, 2, 4), (4, 1, None)} and 5 <= asked.count((4, 1, None)) <= 20


@pytest.mark.parametrize(("schedule", "last"), [("linear", 4e-5), ("scaled_linear", 4.7e-3)])
def test_the_schedule_is_that_of_the_config(
    tmp_path: Path, standard_vae: AutoencoderKL, schedule: str, last: float
) -> None:
    options = config.load(tiny(tmp_path, network=TINY_BASE["network"] | {"schedule": schedule}))
    tokenizer = train_tokenizer(32)
    text = text_encoder(options.network, tokenizer)
    made = unets.base_model(options.network, standard_vae, text, tokenizer, 32)
    assert float(made.schedule.alpha_bar[-1]) == pytest.approx(last, rel=0.05)
    made.save(tmp_path / "base")
    again = StableDiffusion.load(str(tmp_path / "base"))
    assert torch.equal(again.schedule.alpha_bar, made.schedule.alpha_bar)


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its half of the same batch: losses and gradients are those of the whole."""
    options = config.load(tmp_config(tmp_path), ["training.batch=8", "training.no_text=0.5"])
    prior = tiny_prior()
    system = unets.DiffusionSystem(options, prior, *banks(tmp_path, prior.vae, 16))

    def learnt(step: int, place: tuple[int, int]) -> tuple[float, torch.Tensor]:
        monkeypatch.setattr(unets.DiffusionSystem, "place", place)
        monkeypatch.setattr(unets.DiffusionSystem, "mean_of_all", lambda self, loss: float(loss.detach()))
        monkeypatch.setattr(unets.DiffusionSystem, "make_together", lambda self, bank, chosen: None)  # each alone
        system.zero_grad()
        loss = system.training_step(step, step)
        loss.backward()
        return loss.item(), prior.unet.conv_in.weight.grad.clone()

    kinds = set()
    for step in range(6):
        (whole, expected), *halves = (learnt(step, place) for place in ((0, 1), (0, 2), (1, 2)))
        kinds |= set(system.metrics)
        assert halves[0][0] != halves[1][0]
        assert sum(loss for loss, _ in halves) / 2 == pytest.approx(whole, rel=1e-4)
        torch.testing.assert_close((halves[0][1] + halves[1][1]) / 2, expected, rtol=1e-3, atol=1e-6)
    assert kinds == {"loss_2d", "loss_3d"}
