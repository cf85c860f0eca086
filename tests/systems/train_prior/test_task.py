"""The task "train-prior": three stages, each of which may be killed, and a folder that others can read."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.task_server import (
    TINY_PRIOR,
    assert_same,
    finished_run,
    saved_at,
    server,
    snapshot,
    weights,
    write_config,
)
from tests.support.tiny_prior import tiny_prior
from tests.support.toy_run import log
from threedgen import config
from threedgen.config import ConfigError
from threedgen.data.latents import BLOCK, LatentBank
from threedgen.data.toybox.world import Toybox
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run import cache
from threedgen.run.metrics import read_summary
from threedgen.systems.train_base import autoencoder
from threedgen.systems.train_prior import draft as draft_training
from threedgen.systems.train_prior import system as prior_training
from threedgen.systems.train_prior import task as train_prior
from threedgen.systems.train_prior import text as text_training
from threedgen.systems.train_prior.options import (
    DraftTrainingConfig,
    NetworkConfig,
    TextTrainingConfig,
    TrainPriorConfig,
)

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STEPS = TINY_PRIOR["trainer"]["max_steps"]
STAGE = TINY_PRIOR["autoencoder"]["max_steps"]


def tiny(folder: Path, **values: Any) -> Path:
    return write_config(folder / "tiny.yaml", TINY_PRIOR, **values)


def command(folder: Path, *overrides: str) -> list[str]:
    return ["--config", str(tiny(folder)), "out=run", *overrides]


def undisturbed() -> Path:
    return finished_run(command)


def assert_same_run(run: Path) -> None:
    """Autoencoder, weights, their average and what is made of them are those of the run without a stop."""
    assert_same(weights(run), weights(undisturbed()))
    parts = ("autoencoder/vae.safetensors", "text/text_encoder.safetensors", "draft/draft.safetensors")
    for name in (*parts, "prior/SHA256SUMS", "samples.png"):
        assert (run / name).read_bytes() == (undisturbed() / name).read_bytes(), name


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a finished run, in its own working directory."""
    shutil.copytree(undisturbed(), tmp_path / "run")
    return tmp_path


# ---------------------------------------------------------------- what a run leaves behind


@unix
def test_a_run_leaves_a_prior_behind() -> None:
    run = undisturbed()
    summary = read_summary(run)
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    prior = MVDream.load(str(run / "prior"), dtype="fp32")
    assert prior.image_size == 32 and prior.max_tokens == 24
    assert prior.unknown_words("a red dog wearing a zzz")[0][0] == "zzz"
    c2w = torch.eye(4).repeat(2, 1, 1) + torch.eye(4)[3].outer(torch.tensor([0.0, 0, 0, 0]))
    c2w[:, 2, 3] = 2.0
    pictures = prior.sample("a red dog", c2w, steps=1, generator=torch.Generator().manual_seed(0))
    assert pictures.shape == (2, 32, 32, 3) and torch.isfinite(pictures).all()
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.part"))


@unix
def test_diffusers_reads_the_prior() -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    folder = undisturbed() / "prior"
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert unet.config.class_embed_type == "projection" and vae.config.latent_channels == 8
    assert len(tokenizer) <= text.config.vocab_size and tokenizer.tokenize("A Red dog") == ["a", "red", "dog"]
    assert scheduler.config.num_train_timesteps == 1000
    ours = MVDream.load(str(folder), dtype="fp32")
    assert_same(dict(unet.state_dict()), dict(ours.unet.state_dict()))
    ids = tokenizer("a red dog", return_tensors="pt", padding="max_length", max_length=24).input_ids
    with torch.no_grad():
        assert torch.allclose(text(ids).last_hidden_state, ours.encode_prompt(["a red dog"]), atol=1e-5)


@unix
def test_what_is_saved_is_the_average() -> None:
    state = weights(undisturbed())
    saved = MVDream.load(str(undisturbed() / "prior"), dtype="fp32").unet.state_dict()
    for name, value in saved.items():
        average = state[f"average./{name.replace('.', '/')}"]
        assert torch.equal(value, average.half().float()), name
    assert any(not torch.equal(saved[name], state[f"unet.{name}"].half().float()) for name in saved)


# ---------------------------------------------------------------- kills and signals


@unix
def test_killed_in_every_stage_and_the_result_is_the_same(tmp_path: Path) -> None:
    run, words = tmp_path / "run", command(tmp_path)

    def killed_at(step: int, system: str) -> None:
        pid = server().held(tmp_path, words=words, hold_at=step, hold_in=system)
        os.kill(pid, signal.SIGKILL)
        assert server().wait(pid) == -signal.SIGKILL, log(tmp_path)

    def killed_in(*functions: str) -> None:
        for function in functions:
            assert server().run(tmp_path, words=words, die_in=function) == -signal.SIGKILL, log(tmp_path)

    killed_at(3, "Autoencoder")
    assert saved_at(run / "autoencoder")
    killed_in(
        "threedgen.systems.train_base.autoencoder.standardise",  # trained, but not yet written
        "threedgen.systems.train_prior.system.build",  # written, but the second stage has not begun
        "threedgen.data.latents.caption",  # in the middle of its first step
    )
    assert not saved_at(run / "text") and (run / "autoencoder" / "vae.safetensors").exists()
    killed_at(3, "Text")
    assert saved_at(run / "text")
    killed_in("threedgen.run.cache.keep")  # trained, but not yet written
    killed_at(3, "Draft")
    assert saved_at(run / "draft") and (run / "text" / "text_encoder.safetensors").exists()
    killed_in("threedgen.run.cache.keep", "threedgen.systems.train_prior.system.vocabulary")
    assert not saved_at(run) and (run / "draft" / "draft.safetensors").exists()
    killed_at(6, "Prior")
    assert saved_at(run)
    assert server().run(tmp_path, words=["--resume", "run"]) == 0, log(tmp_path)
    assert_same_run(run)


@unix
def test_ctrl_c_in_the_first_stage_and_sigterm_in_the_last(tmp_path: Path) -> None:
    run, words = tmp_path / "run", command(tmp_path, "checkpoint.seconds=1000")
    stage = {"hold_at": 2, "hold_in": "Autoencoder"}
    assert server().signalled(tmp_path, signal.SIGINT, words=words, **stage) == 130, log(tmp_path)
    assert saved_at(run / "autoencoder") and not (run / "autoencoder" / "vae.safetensors").exists()
    code = server().signalled(tmp_path, signal.SIGTERM, words=words, hold_at=STEPS - 2, hold_in="Prior")
    assert code == 143, log(tmp_path)
    assert not (run / "samples.png").exists()
    shutil.rmtree(run / "latents")  # only a cache
    vae = run / "autoencoder" / "vae.safetensors"
    vae.write_bytes(vae.read_bytes()[:-9])
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert "vae.safetensors is damaged" in log(tmp_path)
    assert_same_run(run)


@unix
def test_ctrl_c_in_the_last_stage_saves_the_prior_so_far(tmp_path: Path, copy: Path) -> None:
    again = [*command(tmp_path), f"trainer.max_steps={STEPS + 4}"]
    code = server().signalled(copy, signal.SIGINT, words=again, hold_at=STEPS + 1, hold_in="Prior")
    assert code == 130, log(copy)
    summary = read_summary(copy / "run")
    assert summary["status"] == "interrupted" and summary["steps"] == STEPS + 2
    sums = (copy / "run" / "prior" / "SHA256SUMS").read_bytes()
    assert sums != (undisturbed() / "prior" / "SHA256SUMS").read_bytes()


@unix
def test_the_same_command_again_repeats_no_work(copy: Path) -> None:
    before = snapshot(copy / "run")
    assert server().run(copy, words=command(copy)) == 0, log(copy)
    after = snapshot(copy / "run")
    before.pop("config.yaml"), after.pop("config.yaml")  # written again, the same
    assert after == before and "finished already" in log(copy)


@unix
def test_pictures_and_saving_do_not_change_the_result(tmp_path: Path) -> None:
    changed = ("trainer.val_check_interval=4", "checkpoint.seconds=1000", "trainer.log_every_n_steps=1")
    assert server().run(tmp_path, words=command(tmp_path, *changed)) == 0, log(tmp_path)
    assert_same_run(tmp_path / "run")


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path: Path) -> None:
    trainer = TINY_PRIOR["trainer"] | {"accelerator": "gpu"}
    options = config.load(tiny(tmp_path, trainer=trainer)).model_copy(update={"out": str(tmp_path / "run")})
    assert train_prior.run(options, quiet=True) == 0
    assert (tmp_path / "run" / "samples.png").exists()


@unix
def test_a_run_does_not_go_on_with_other_word_numbers(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = config.load(copy / "run" / "config.yaml", [f"trainer.max_steps={STEPS + 2}"])
    options = options.model_copy(update={"out": str(copy / "run")})
    monkeypatch.setattr(prior_training, "vocabulary", lambda prior: "other")
    with pytest.raises(ConfigError, match="another config .vocabulary: '[0-9a-f]+' -> 'other'"):
        train_prior.run(options, resume=copy / "run", quiet=True)


# ---------------------------------------------------------------- the stages of the text encoder and the draft


@pytest.fixture
def untrained(tmp_path: Path) -> tuple[MVDream, LatentBank]:
    """A prior before its second stage, and scenes in latents of unit variance."""
    vae = tiny_prior().vae
    autoencoder.standardise(vae, torch.from_numpy(Toybox(5).batch(range(16), 16, n_view=1)[1]))
    torch.manual_seed(0)
    prior = prior_training.build(NetworkConfig(**TINY_PRIOR["network"]), vae, 16)
    return prior, LatentBank(tmp_path, Toybox(5), prior, 96, n_view=2)


def test_captions_are_told_apart_after_a_few_steps(untrained: tuple[MVDream, LatentBank]) -> None:
    """The loss falls below that of guessing among the captions of a step, with text and latents unseen before."""
    options = TextTrainingConfig(
        max_steps=60, batch=16, fresh=4, scenes=64, n_view=2, learning_rate={"0%": 0.0, "10%": 1e-3, "100%": 5e-4}
    )
    prior, bank = untrained
    system = text_training.TextSystem(options, 0, options.max_steps, prior, bank)
    before = {name: value.clone() for name, value in prior.text_encoder.state_dict().items()}
    made = system.configure_optimizers()
    for step in range(options.max_steps):
        assert len(set(system.scenes(step).tolist())) == 16 and system.scenes(step).max() < min(64, 16 + 4 * step)
        made["optimizer"].zero_grad()
        loss = system.training_step(step, step)
        loss.backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert loss.item() < 0.6 * math.log(16)
    assert any(not torch.equal(value, before[name]) for name, value in prior.text_encoder.state_dict().items())


def test_the_draft_learns_what_words_and_cameras_show(tmp_path: Path, untrained: tuple[MVDream, LatentBank]) -> None:
    """Of a few scenes it comes far below the best guess that knows neither, the mean of all latents."""
    prior, _ = untrained
    bank = LatentBank(tmp_path / "typical", Toybox(5, typical=True), prior, 8, n_view=1)
    options = DraftTrainingConfig(max_steps=120, batch=16, scenes=8, two_d=0, no_text=0, learning_rate=3e-3, bf16=False)
    system = draft_training.DraftSystem(options, 0, options.max_steps, prior, bank)
    made = system.configure_optimizers()
    for step in range(options.max_steps):
        made["optimizer"].zero_grad()
        loss = system.training_step(step, step)
        loss.backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    z = bank.scenes(range(8)).flatten(0, 1)
    assert loss.item() < 0.5 * (z - z.mean(0)).square().mean().item()


def test_the_unet_sees_the_draft_and_nothing_else_learns(tmp_path: Path, untrained: tuple[MVDream, LatentBank]) -> None:
    prior, bank = untrained
    options: TrainPriorConfig = config.load(tiny(tmp_path), ["training.two_d=0"])
    system = prior_training.PriorSystem(options, prior, bank)
    seen: list[torch.Tensor] = []
    prior.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    system.training_step(0, 0).backward()
    around = (prior.draft, prior.text_encoder, prior.vae)
    assert all(p.grad is None for network in around for p in network.parameters())
    assert any(p.grad is not None for p in prior.unet.parameters())
    with torch.no_grad():
        prior.draft.out.bias.add_(1)
    system.training_step(0, 0)
    change = (seen[1] - seen[0]).mean((0, 2, 3))
    assert torch.allclose(change, torch.tensor([0.0] * 4 + [1.0] * 4), atol=1e-5)


# ---------------------------------------------------------------- going on from a prior


@unix
def test_start_goes_on_from_a_folder(tmp_path: Path) -> None:
    start, still = str(undisturbed() / "prior"), {"training": TINY_PRIOR["training"] | {"learning_rate": 0.0}}
    trainer = {"trainer": TINY_PRIOR["trainer"] | {"max_steps": 1}}
    words = ["--config", str(tiny(tmp_path, start=start, **still, **trainer)), "out=run"]
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert not (tmp_path / "run" / "autoencoder").exists()
    made, before = (MVDream.load(str(folder)) for folder in (tmp_path / "run" / "prior", start))
    for part in ("unet", "text_encoder", "vae"):
        assert_same(dict(getattr(made, part).state_dict()), dict(getattr(before, part).state_dict()))


def test_a_prior_of_another_size_is_not_gone_on_from(tmp_path: Path) -> None:
    tiny_prior().save(tmp_path / "prior")
    options = config.load(tiny(tmp_path), [f"start={tmp_path / 'prior'}"])
    with pytest.raises(ConfigError, match=r"image_size: should be 16.*got 32"):
        train_prior.starting_prior(options)


# ---------------------------------------------------------------- mistakes and full disks


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["image_size=33"], "image_size 33 should be a multiple of 2"),
        (["autoencoder.image_size=33"], "image_size 33 should be a multiple of 2"),
        (["autoencoder.crop=48"], "crop 48 should not exceed image_size 32"),
        (["autoencoder.groups=3"], "channels [8, 16] should be multiples of groups 3"),
        (["network.groups=5"], "channels [16, 32] should be multiples of groups 5"),
        (["network.heads=[1]"], "heads has 1"),
        (["network.heads=[1, 3]"], "should be multiples of heads 3"),
        (["network.text_heads=3"], "text_width [16] should be multiples of text_heads 3"),
        (["network.channels=[]"], "channels has 0"),
        (["training.fresh=4"], "fresh 4 should not exceed batch 3"),
    ],
)
def test_sizes_that_do_not_fit_are_found_at_once(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tiny(tmp_path), words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_start_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start: there is no file or folder 'nowhere'"):
        config.load(tiny(tmp_path), ["start=nowhere"]).check()


@pytest.mark.parametrize(("first", "scenes", "fresh"), [(17, 20, 2), (1, 40, 3), (50, 40, 2), (3, 40, 0), (39, 40, 3)])
def test_the_scenes_of_a_step_are_always_there(tmp_path: Path, first: int, scenes: int, fresh: int) -> None:
    words = [f"training.first={first}", f"training.scenes={scenes}", f"training.fresh={fresh}"]
    options: TrainPriorConfig = config.load(tiny(tmp_path), words)
    system = prior_training.PriorSystem(options, tiny_prior(), None)
    seen: set[int] = set(range(first))
    for step in range(60):
        chosen = system.scenes(step, 3)
        assert len(chosen) == 3 and chosen.min() >= 0 and chosen.max() < scenes
        new = {int(i) for i in chosen} - seen
        assert len(new) == min(fresh, 3, scenes - len(seen & set(range(scenes))))
        assert new <= set(range(len(seen), len(seen) + 3))
        seen |= new


def test_views_are_of_scenes_of_their_own_at_first_and_joined_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["training.alone=0.5", "training.two_d=0.2", "training.batch=3", "trainer.max_steps=40"]
    options: TrainPriorConfig = config.load(tiny(tmp_path), words)
    prior = tiny_prior()
    bank = LatentBank(tmp_path / "latents", Toybox(5), prior, 40, n_view=2)
    asked: list[tuple[int, int, int | None]] = []  # pictures, how many are joined, their cameras

    def predict(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, camera: Any, n_view: int, draft: None):
        assert len(text) == len(x) == len(t) == 6 and torch.equal(t, t[::n_view].repeat_interleave(n_view))
        asked.append((len(x), n_view, None if camera is None else len(camera)))
        return x * next(prior.unet.parameters()).mean()

    monkeypatch.setattr(prior, "predict", predict)
    system = prior_training.PriorSystem(options, prior, bank)
    for step in range(40):
        system.training_step(step, step)
    flat = (6, 1, None)
    assert set(asked[:20]) == {(6, 1, 6), flat} and set(asked[20:]) == {(6, 2, 6), flat}
    assert 2 <= asked.count(flat) <= 16


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_noise_levels_of_a_step_are_spread_out(count: int) -> None:
    for seed in range(20):
        draws = prior_training.stratified(count, torch.Generator().manual_seed(seed))
        assert sorted((draws * count).long().clamp(max=count - 1).tolist()) == list(range(count))


@pytest.mark.parametrize(("schedule", "last"), [("linear", 4e-5), ("scaled_linear", 4.7e-3)])
def test_the_schedule_is_that_of_the_config(tmp_path: Path, schedule: str, last: float) -> None:
    network = TINY_PRIOR["network"] | {"schedule": schedule}
    options = config.load(tiny(tmp_path, network=network))
    prior = prior_training.build(options.network, tiny_prior().vae, 32)
    assert float(prior.schedule.alpha_bar[-1]) == pytest.approx(last, rel=0.05)
    prior.save(tmp_path / "prior")
    again = MVDream.load(str(tmp_path / "prior"))
    assert torch.equal(again.schedule.alpha_bar, prior.schedule.alpha_bar)


def test_scenes_are_kept_in_memory_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bank(folder: Path) -> LatentBank:
        return LatentBank(folder, Toybox(5), tiny_prior(), 40, n_view=2)

    wanted = bank(tmp_path / "a").scenes([1, BLOCK])
    free = {"bytes": cache.SPARE - 1}
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free["bytes"]}))
    full = bank(tmp_path / "b")
    assert torch.equal(full.scenes([1]), wanted[:1]) and not full.done.any()
    monkeypatch.setattr(full, "fill", lambda block, fill=full.fill: fill(block) if block else 1 / 0)
    free["bytes"] *= 2
    assert torch.equal(full.scenes([1, BLOCK]), wanted) and full.done.tolist() == [0, 1, 0]
    assert caplog.text.count("the disk is full") == 1
