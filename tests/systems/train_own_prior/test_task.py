"""The task "train-own-prior": meshes in, a prior out; a kill changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import threedgen
from tests.support.asset_folder import make_assets
from tests.support.marks import unix
from tests.support.task_server import (
    TINY_BASE,
    assert_same,
    finished_run,
    prior_folder,
    saved_at,
    server,
    weights,
    write_config,
)
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from tests.support.toy_run import log
from threedgen.config import ConfigError, load
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.run.metrics import read_summary
from threedgen.systems.train_own_prior import task

TINY: dict[str, Any] = {
    "task": "train-own-prior",
    "threads": 1,
    "engine": "here",
    "held_out": 1,
    "views": {"size": 16, "azimuths": 4},
    "training": {
        "batch": 4, "fresh": 2, "first": 4, "pictures": 12, "n_view": 2, "two_d": 0.5, "bf16": False,
        "learning_rate": 0.01,
    },
    "trainer": TINY_BASE["trainer"] | {"max_steps": 6, "log_every_n_steps": 1},
    "checkpoint": TINY_BASE["checkpoint"],
}  # fmt: skip


def command(folder: Path, *overrides: str) -> list[str]:
    if not (folder / "assets").exists():
        make_assets(folder / "assets", more=1)
    prior = {"weights": str(prior_folder())}
    written = write_config(folder / "own.yaml", TINY, data=str(folder / "assets"), prior=prior)
    return ["--config", str(written), "out=run", *overrides]


def done() -> Path:
    return finished_run(command)


@unix
def test_meshes_become_a_prior(tmp_path: Path) -> None:
    assert read_summary(done())["steps"] == 6
    assert read_summary(done())["fid"] > 0
    assert (done() / "sheet.png").exists() and (done() / "samples.png").exists()
    found, before = MVDream.load(str(done() / "prior"), dtype="fp32"), tiny_prior()
    c2w = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    assert torch.isfinite(found.sample("a red box", c2w, steps=1, generator=cpu())).all()
    old, new = before.unet.state_dict(), found.unet.state_dict()
    moved = [name for name, value in old.items() if (new[name] - value).abs().max() > 1e-2]
    assert any("class_embedding" in name for name in moved) and any("attn1" in name for name in moved)
    assert_same(dict(found.vae.state_dict()), {k: v.half().float() for k, v in before.vae.state_dict().items()})


def test_its_samples_do_not_begin_from_what_the_coarse_predictor_learnt_of_others(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path / "base")
    written = write_config(tmp_path / "own.yaml", TINY, data="assets", prior={"weights": str(tmp_path / "base")})
    task.begin(load(written)).save(tmp_path / "own")
    poses = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    for folder, guesses in (("base", True), ("own", False)):
        prior = MVDream.load(str(tmp_path / folder))
        guess = prior.coarse_latents(prior.encode_prompt(["a red box"] * 2), poses)
        assert (guess is not None) == guesses


@unix
def test_a_killed_training_goes_on_and_rendered_assets_serve_another(tmp_path: Path) -> None:
    shutil.copytree(done().parent / "assets", tmp_path / "assets")  # with the times of its files
    words = command(tmp_path)
    server().killed(tmp_path, words=words, hold_at=4, hold_in="OwnPrior")
    assert saved_at(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "objects")  # only a cache
    shard = tmp_path / "run" / "views" / "shard-00000.tar"
    before = shard.stat().st_mtime_ns
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert shard.stat().st_mtime_ns == before
    assert_same(weights(tmp_path / "run"), weights(done()))
    again = [*command(tmp_path, "data=run"), "out=other"]
    assert server().run(tmp_path, words=again) == 0, log(tmp_path)
    assert not (tmp_path / "other" / "views").exists()
    assert_same(weights(tmp_path / "other"), weights(done()))


def logged(run: Path) -> list[float]:
    """The loss of each step, over all processes: of single pictures, or of several views."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss_2d" if "loss_2d" in line else "loss_3d"] for line in lines]


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    several = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true"]
    words = [sys.executable, str(threedgen.folder("configs").parent / "launch.py"), *command(tmp_path, *several)]
    subprocess.run(words, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    one, two = (logged(run) for run in (done(), tmp_path / "run"))
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-3)


def test_a_2d_model_gets_cameras_and_begins_as_it_was(tmp_path: Path) -> None:
    flat = tiny_prior(class_embed_type=None, projection_class_embeddings_input_dim=None)
    flat.save(tmp_path / "flat")
    words = [f"prior.weights={tmp_path / 'flat'}", "training.gradient_checkpointing=true", "prior.dtype=fp32"]
    found = task.begin(load("train-own-prior", words))
    assert found.unet.class_embedding is not None and found.unet.is_gradient_checkpointing
    x, t, text = (
        torch.randn(2, *found.latent_shape, generator=cpu()),
        torch.full((2,), 500),
        found.encode_prompt(["a"] * 2),
    )
    before = StableDiffusion.load(str(tmp_path / "flat"), dtype="fp32")
    with torch.no_grad():
        seen = found.predict(x, t, text, torch.randn(2, 16, generator=cpu()))
        assert torch.allclose(seen, before.predict(x, t, text), atol=1e-5)


def test_gradients_of_less_memory_are_the_same() -> None:
    found = []
    for less in (False, True):
        prior = tiny_prior()
        prior.unet.requires_grad_(True).train()
        if less:
            prior.unet.enable_gradient_checkpointing()
        x, camera = torch.randn(2, *prior.latent_shape, generator=cpu()), torch.randn(2, 16, generator=cpu())
        prior.predict(x, torch.full((2,), 500), prior.encode_prompt(["a"] * 2), camera, 2).square().sum().backward()
        found.append(
            {name: value.grad.clone() for name, value in prior.unet.named_parameters() if value.grad is not None}
        )
    assert_same(*found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=nowhere"], "data: should be a folder with meshes"),
        (["pictures=nowhere"], "pictures: should be a folder with pictures and a captions.csv"),
        (["prior.personalisation=dog.safetensors"], "prior.personalisation belongs to the weights it was made with"),
        (["prior.weights=nowhere"], "prior.weights: there is no file or folder 'nowhere'"),
    ],
)
def test_mistakes_are_found_at_once(tmp_path: Path, words: list[str], said: str) -> None:
    command(tmp_path)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "own.yaml", words).check()
