"""The tasks "train-base" and "train-prior": stages, each of which may be killed, and folders that others can read."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from tests.support.errors import refused
from tests.support.marks import unix
from tests.support.task_server import (
    TINY_BASE,
    TINY_PRIOR,
    assert_same,
    finished_run,
    saved_at,
    server,
    snapshot,
    weights,
    write_config,
)
from tests.support.tiny_prior import cpu
from tests.support.toy_run import log
from threedgen import config
from threedgen.config import ConfigError
from threedgen.data.bank import LatentBank
from threedgen.data.toybox.pictures import FourSides, Photographs
from threedgen.data.toybox.world import Toybox
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.run.metrics import read_summary
from threedgen.systems.train_prior import system as unets
from threedgen.systems.train_prior import task

STEPS = TINY_BASE["trainer"]["max_steps"]


def tiny(folder: Path, **values: Any) -> Path:
    return write_config(folder / "tiny.yaml", TINY_BASE, **values)


def command(folder: Path, *overrides: str) -> list[str]:
    return ["--config", str(tiny(folder)), "out=run", *overrides]


def base() -> Path:
    return finished_run(command)


def tuning(folder: Path, *overrides: str) -> list[str]:
    """The command that goes on from the base."""
    made = write_config(folder / "tuning.yaml", TINY_PRIOR, start=str(base() / "base"))
    return ["--config", str(made), "out=run", *overrides]


def prior() -> Path:
    return finished_run(tuning)


def assert_same_base(run: Path) -> None:
    """Autoencoder, weights, their average and what is made of them are those of the run without a stop."""
    assert_same(weights(run), weights(base()))
    parts = [f"{part}/{part}.safetensors" for part in ("autoencoder", "decoder", "words")]
    for name in (*parts, "base/SHA256SUMS", "samples.png"):
        assert (run / name).read_bytes() == (base() / name).read_bytes(), name


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a finished run, in its own working directory."""
    shutil.copytree(base(), tmp_path / "run")
    return tmp_path


# ---------------------------------------------------------------- what a run leaves behind


@unix
def test_a_run_leaves_a_2d_model_behind() -> None:
    summary = read_summary(base())
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    found = StableDiffusion.load(str(base() / "base"), dtype="fp32")
    assert found.image_size == 32 and found.max_tokens == 32
    assert found.unknown_words("a red dog wearing a zzz")[0][0] == "zzz"
    picture = found.sample("a red dog", None, steps=1, generator=cpu())
    assert picture.shape == (1, 32, 32, 3) and torch.isfinite(picture).all()
    assert not list(base().rglob("*.tmp")) and not list(base().rglob("*.part"))
    with pytest.raises(ConfigError, match="no camera branch"):
        MVDream.load(str(base() / "base"))


@unix
def test_a_run_from_it_leaves_a_prior_of_several_views_behind() -> None:
    summary = read_summary(prior())
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    found = MVDream.load(str(prior() / "prior"), dtype="fp32")
    c2w = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    pictures = found.sample("a red dog", c2w, steps=1, generator=cpu())
    assert pictures.shape == (2, 32, 32, 3) and torch.isfinite(pictures).all()
    before = StableDiffusion.load(str(base() / "base"), dtype="fp32")
    for part in ("vae", "text_encoder"):
        assert_same(dict(getattr(found, part).state_dict()), dict(getattr(before, part).state_dict()))
    old, new = before.unet.state_dict(), found.unet.state_dict()
    assert all(not torch.equal(new[name], value) for name, value in old.items() if value.ndim > 1)


@unix
def test_it_begins_as_the_2d_model_whatever_the_camera(tmp_path: Path) -> None:
    found = StableDiffusion.load(str(base() / "base"), dtype="fp32")
    tuned = unets.multiview_model(found, CoarsePredictor(found.text_shape[1], *found.latent_shape[:2]))
    x, t = torch.randn(2, *found.latent_shape, generator=cpu()), torch.full((2,), 500)
    text, camera = found.encode_prompt(["a red dog"] * 2), torch.randn(2, 16, generator=cpu())
    with torch.no_grad():
        assert torch.allclose(tuned.predict(x, t, text, camera), found.predict(x, t, text), atol=1e-6)
        joined = tuned.predict(x, t, text, camera, 2)
    assert not torch.allclose(joined, tuned.predict(x, t, text, camera), atol=1e-6)
    options = config.load(tmp_config(tmp_path))
    system = unets.DiffusionSystem(options, tuned, *banks(tmp_path, tuned.vae, two_d=0))
    system.training_step(0, 0).backward()
    assert tuned.unet.class_embedding.linear_2.weight.grad.abs().max() > 0, "the camera cannot be learnt"
    seen = tuned.unet.conv_in.weight.grad[:, tuned.latent_shape[0] :]
    assert seen.abs().max() > 0, "the coarse prediction is not seen"


@unix
def test_the_coarse_predictor_of_a_run_is_the_average_that_was_learnt() -> None:
    found = MVDream.load(str(prior() / "prior"), dtype="fp32")
    kept = load_file(prior() / "coarse" / "coarse.safetensors")
    for name, value in dict(found.coarse.state_dict()).items():
        torch.testing.assert_close(value, kept[name].half().float(), atol=0, rtol=0)


def going_on(folder: Path) -> list[str]:
    """The command that trains the prior on, in steps of no length."""
    start = f"start={prior() / 'prior'}"
    return [*tuning(folder), start, "coarse.learning_rate=0", "training.learning_rate=0", "seed=9"]


@unix
def test_a_prior_is_trained_on_from_all_that_it_had() -> None:
    after, before = (MVDream.load(str(run / "prior"), dtype="fp32") for run in (finished_run(going_on), prior()))
    for part in ("coarse", "unet"):
        assert_same(dict(getattr(after, part).state_dict()), dict(getattr(before, part).state_dict()))


def tmp_config(folder: Path) -> Path:
    return write_config(folder / "tuning.yaml", TINY_PRIOR)


def banks(folder: Path, vae: Any, size: int = 32, two_d: float = 0.3) -> list[tuple[float, LatentBank]]:
    """Of single pictures, and of two views of objects, with their shares of the steps."""
    single = LatentBank(folder / "latents", Photographs(5), vae, size, 40)
    return [(two_d, single), (1 - two_d, LatentBank(folder / "objects", FourSides(Toybox(5), 2), vae, size, 20))]


@unix
def test_a_prior_without_coarse_prediction_learns_in_two_sizes(tmp_path: Path) -> None:
    run = finished_run(lambda folder: tuning(folder, "coarse=null", "training.half=0.5"))
    assert {"latents", "latents-half", "objects", "objects-half"} <= {path.name for path in run.iterdir()}
    found = MVDream.load(str(run / "prior"), dtype="fp32").with_draft(0.3)
    c2w = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    assert found.sample("a red dog", c2w, steps=2, generator=cpu()).isfinite().all()
    with pytest.raises(ConfigError, match="coarse should be null"):
        config.load(tuning(tmp_path)[1], ["training.half=0.5"])


@unix
def test_diffusers_reads_both() -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    for folder, embedding in ((base() / "base", None), (prior() / "prior", "projection")):
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float()
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        assert unet.config.class_embed_type == embedding and vae.config.latent_channels == 8
        assert len(tokenizer) <= text.config.vocab_size and tokenizer.tokenize("A Red dog") == ["a", "red", "dog"]
        assert scheduler.config.num_train_timesteps == 1000
        kind = StableDiffusion if embedding is None else MVDream
        ours = kind.load(str(folder), dtype="fp32")
        assert_same(dict(unet.state_dict()), dict(ours.unet.state_dict()))
        ids = tokenizer("a red dog", return_tensors="pt", padding="max_length", max_length=32).input_ids
        with torch.no_grad():
            assert torch.allclose(text(ids).last_hidden_state, ours.encode_prompt(["a red dog"]), atol=1e-5)


@unix
def test_what_is_saved_is_the_average() -> None:
    state = weights(base())
    saved = StableDiffusion.load(str(base() / "base"), dtype="fp32").unet.state_dict()
    for name, value in saved.items():
        average = state[f"average./{name.replace('.', '/')}"]
        assert torch.equal(value, average.half().float()), name
    assert any(not torch.equal(saved[name], state[f"unet.{name}"].half().float()) for name in saved)


# ---------------------------------------------------------------- kills and signals


@unix
def test_killed_in_every_stage_and_the_result_is_the_same(tmp_path: Path) -> None:
    run, words = tmp_path / "run", command(tmp_path)

    def killed_at(step: int, system: str) -> None:
        server().killed(tmp_path, words=words, hold_at=step, hold_in=system)

    def killed_in(*functions: str) -> None:
        for function in functions:
            assert server().run(tmp_path, words=words, die_in=function) == -signal.SIGKILL, log(tmp_path)

    killed_at(3, "Autoencoder")
    assert saved_at(run / "autoencoder")
    killed_in("threedgen.systems.train_prior.autoencoder.standardise")  # trained, but not yet written
    killed_at(2, "Decoder")
    assert saved_at(run / "decoder")
    killed_in(
        "threedgen.systems.train_prior.task.text_encoder",  # written, but the next stage has not begun
        "threedgen.data.bank.encode",  # in the middle of its first step
    )
    assert not saved_at(run / "words") and (run / "autoencoder" / "autoencoder.safetensors").exists()
    killed_at(3, "Words")
    assert saved_at(run / "words")
    killed_in("threedgen.run.cache.save_network", "threedgen.systems.train_prior.system.vocabulary_digest")
    assert not saved_at(run) and (run / "words" / "words.safetensors").exists()
    killed_at(6, "Diffusion")
    assert saved_at(run)
    assert server().run(tmp_path, words=["--resume", "run"]) == 0, log(tmp_path)
    assert_same_base(run)


@unix
def test_ctrl_c_in_the_first_stage_and_sigterm_in_the_last(tmp_path: Path) -> None:
    run, words = tmp_path / "run", command(tmp_path, "checkpoint.seconds=1000")
    stage = {"hold_at": 2, "hold_in": "Autoencoder"}
    assert server().signalled(tmp_path, signal.SIGINT, words=words, **stage) == 130, log(tmp_path)
    vae = run / "autoencoder" / "autoencoder.safetensors"
    assert saved_at(run / "autoencoder") and not vae.exists()
    code = server().signalled(tmp_path, signal.SIGTERM, words=words, hold_at=STEPS - 2, hold_in="Diffusion")
    assert code == 143, log(tmp_path)
    assert not (run / "samples.png").exists()
    shutil.rmtree(run / "latents")  # only a cache
    vae.write_bytes(vae.read_bytes()[:-9])
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert "autoencoder.safetensors is damaged" in log(tmp_path)
    assert_same_base(run)


@unix
def test_ctrl_c_in_the_last_stage_saves_the_model_so_far(tmp_path: Path, copy: Path) -> None:
    again = [*command(tmp_path), f"trainer.max_steps={STEPS + 4}"]
    code = server().signalled(copy, signal.SIGINT, words=again, hold_at=STEPS + 1, hold_in="Diffusion")
    assert code == 130, log(copy)
    summary = read_summary(copy / "run")
    assert summary["status"] == "interrupted" and summary["steps"] == STEPS + 2
    sums = (copy / "run" / "base" / "SHA256SUMS").read_bytes()
    assert sums != (base() / "base" / "SHA256SUMS").read_bytes()


@unix
def test_a_killed_tuning_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    words = tuning(tmp_path)
    for stage, step, folder in (("Coarse", 2, "coarse"), ("Diffusion", 6, ".")):
        server().killed(tmp_path, words=words, hold_at=step, hold_in=stage)
        assert saved_at(tmp_path / "run" / folder)
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert_same(weights(tmp_path / "run"), weights(prior()))


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
    assert_same_base(tmp_path / "run")


@pytest.mark.gpu
def test_training_on_a_gpu(tmp_path: Path) -> None:
    trainer = TINY_BASE["trainer"] | {"accelerator": "gpu"}
    options = config.load(tiny(tmp_path, trainer=trainer)).model_copy(update={"out": str(tmp_path / "run")})
    assert task.run_base(options, quiet=True) == 0
    assert (tmp_path / "run" / "samples.png").exists()


@unix
def test_a_run_does_not_go_on_with_other_word_numbers(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = config.load(copy / "run" / "config.yaml", [f"trainer.max_steps={STEPS + 2}"])
    options = options.model_copy(update={"out": str(copy / "run")})
    monkeypatch.setattr(unets, "vocabulary_digest", lambda prior: "other")
    with refused(None, "vocabulary", "'other'"):
        task.run_base(options, resume=copy / "run", quiet=True)


# ---------------------------------------------------------------- mistakes


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
        (["training.fresh=5"], "fresh 5 should not exceed batch 4"),
    ],
)
def test_sizes_that_do_not_fit_are_found_at_once(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tiny(tmp_path), words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_is_of_whole_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch 3 should be a multiple of 2, n_view"):
        config.load(tmp_config(tmp_path), ["training.batch=3", "training.fresh=1"])


def test_other_numbers_of_pictures_are_rounded_up_to_whole_objects() -> None:
    options = {"batch": 12, "fresh": 7, "first": 1, "pictures": 1000, "seed": 0}
    system = SimpleNamespace(options=SimpleNamespace(**options), numpy_rng=lambda *_: np.random.default_rng(0))
    seen = [unets.DiffusionSystem.entries(system, step, 6, 1.0) for step in range(2)]
    assert [len(objects) for objects in seen] == [2, 2]
    assert [sorted(objects) for objects in seen] == [[1, 2], [3, 4]]  # after one, two new ones in each step
    assert [unets.whole(pictures, 6) for pictures in (1, 6, 7)] == [1, 1, 2]


def test_a_start_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start: there is no file or folder 'nowhere'"):
        config.load(tmp_config(tmp_path), ["start=nowhere"]).check()


def test_a_start_that_another_config_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refused("start", "outputs/train-toybox-base/run/base", "--config train-toybox-base"):
        config.load("train-toybox-prior").check()
