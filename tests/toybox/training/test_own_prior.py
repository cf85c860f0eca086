import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.support.asset_folder import captions, make_assets
from tests.support.errors import refused
from tests.support.task_server import assert_same, finished_run, server, weights, write_config
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from tests.support.tiny_sdxl import tiny_sdxl
from tests.support.tiny_trainings import TINY_MATTE, TINY_OWN, matte_command, own_command
from tests.support.toy_run import log
from threedgen import config
from threedgen.config import load
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.metrics import read_summary
from threedgen.toybox.training import matte, task
from threedgen.toybox.training.matte import MatteImages, MatteSystem
from threedgen.toybox.training.options import TrainMatteConfig
from threedgen.train.task import Task


def done() -> Path:
    return finished_run(own_command)


def test_meshes_become_a_prior(tmp_path: Path) -> None:
    assert read_summary(done())["fid"] > 0
    assert (done() / "sheet.png").exists() and (done() / "samples.png").exists()
    found, before = MVDream.load(str(done() / "prior"), dtype="fp32"), tiny_prior()
    c2w = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    assert torch.isfinite(found.sample("a red box", c2w, steps=1, generator=cpu())).all()
    old, new = before.unet.state_dict(), found.unet.state_dict()
    moved = [name for name, value in old.items() if (new[name] - value).abs().max() > 1e-2]
    assert any("class_embedding" in name for name in moved) and any("attn1" in name for name in moved)
    assert_same(dict(found.vae.state_dict()), {k: v.half().float() for k, v in before.vae.state_dict().items()})


def test_samples_do_not_start_from_the_coarse_prediction(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path / "base")
    written = write_config(tmp_path / "own.yaml", TINY_OWN, data="assets", prior={"weights": str(tmp_path / "base")})
    task.load_own_start(load(written)).save(tmp_path / "own")
    poses = orbit_c2w(torch.full((2,), 0.2), torch.tensor([0.0, 1.5]), torch.full((2,), 2.0))
    for folder, guesses in (("base", True), ("own", False)):
        prior = MVDream.load(str(tmp_path / folder))
        guess = prior.coarse_latents(prior.encode_prompt(["a red box"] * 2), poses)
        assert (guess is not None) == guesses


def test_rendered_assets_are_reused(tmp_path: Path) -> None:
    assert server().run(tmp_path, words=own_command(tmp_path, f"data={done()}", "out=other")) == 0, log(tmp_path)
    assert not (tmp_path / "other" / "views").exists()
    assert_same(weights(tmp_path / "other"), weights(done()))


def test_captions_that_the_prior_reads_as_another_text_are_noted_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    captions(make_assets(Path("assets")), {"ball.obj": "a ball", "box.glb": "a bar stool", "sub/plate.ply": "kids bed"})
    unknown, changed = load("train-own-prior", ["data=assets"]).notes()
    assert unknown.startswith("1 of 3") and "'a bar stool' as ''" in unknown
    assert changed.startswith("1 of 3") and "'kids bed' as 'person bed'" in changed
    adapter = load("train-mvadapter-toybox", ["objects=assets", "objects.held_out=1"])
    assert [note[:6] for note in adapter.notes()] == ["2 of 3"]  # ball, box, plate
    monkeypatch.setattr(task, "render", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        task.train_own(Task(load("train-own-prior", ["data=assets", "out=run"]), quiet=True))
    assert [record.getMessage() for record in caplog.records][-2:] == [unknown, changed]


def test_resumed_run_takes_the_same_assets_from_another_folder(tmp_path: Path) -> None:
    shutil.copytree(done(), tmp_path / "run")
    steps = read_summary(done())["steps"]
    words = ["--resume", "run", f"trainer.max_steps={steps + 1}"]
    shutil.copytree(done() / "views", tmp_path / "other" / "views")
    index = tmp_path / "other" / "views" / "index.json"
    tree = json.loads(index.read_text())
    name = tree["shards"][0]["assets"][0]["name"]
    index.write_text(index.read_text().replace(f'"{name}"', '"another"'))
    assert server().run(tmp_path, words=[*words, "data=other"]) == 2, log(tmp_path)
    assert "data: " in log(tmp_path) and "SHA-256" in log(tmp_path)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == (done() / "config.yaml").read_bytes()
    assert server().run(tmp_path, words=[*words, f"data={done()}"]) == 0, log(tmp_path)
    assert read_summary(tmp_path / "run")["steps"] == steps + 1


# bf16 rounds differently in batches of another size
FP32_LAUNCHER = """
from threedgen.__main__ import main
from threedgen.run import dtypes

dtypes.bf16_cpu = lambda: False
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    several = ["trainer.accelerator=cpu", "trainer.devices=2"]
    (tmp_path / "launch_fp32.py").write_text(FP32_LAUNCHER)
    words = [sys.executable, "launch_fp32.py", *own_command(tmp_path, *several)]
    subprocess.run(words, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    logs = ((run / "metrics.jsonl").read_text().splitlines() for run in (done(), tmp_path / "run"))
    one, two = ([line.get("loss_2d", line.get("loss_3d")) for line in map(json.loads, lines)] for lines in logs)
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-3)


def test_2d_model_gets_a_camera_branch_and_gradient_checkpointing(tmp_path: Path) -> None:
    tiny_prior(class_embed_type=None, projection_class_embeddings_input_dim=None).save(tmp_path / "flat")
    words = [f"prior.weights={tmp_path / 'flat'}", "training.gradient_checkpointing=true"]
    found = task.load_own_start(load("train-own-prior", words))
    assert found.unet.class_embedding is not None and found.unet.is_gradient_checkpointing


def test_trainings_that_save_the_whole_model_refuse_sdxl(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path / "sdxl")
    with refused("prior.weights", "SDXL"):
        task.load_own_start(load("train-own-prior", [f"prior.weights={tmp_path / 'sdxl'}"]))
    with refused("start", "SDXL"):
        task.load_start(Task(load("train-toybox-base", [f"out={tmp_path}"])), str(tmp_path / "sdxl"))


def test_run_leaves_a_matte_for_fits() -> None:
    run = finished_run(matte_command)
    figures = read_summary(run)["matte"]
    assert 0 <= figures["iou"] <= 1 and 0 < figures["error"] < 1
    assert Matte.load(str(run / "matte")).opacity(torch.rand(1, 32, 32, 3)).shape == (1, 32, 32)
    config.load("quick-toybox", [f"fit.matte={run / 'matte'}", "prompt=a red dog"]).check()


def test_images_are_renders_with_their_opacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matte, "RANDOM_SOLIDS_SHARE", 0.0)
    options = TrainMatteConfig.model_validate(TINY_MATTE)
    prior = LatentDiffusion.load("toybox-base")
    images = MatteImages(tmp_path, prior, 32, options)
    rgba = images(np.arange(8))
    assert rgba.shape == (8, 32, 32, 4)
    border = torch.cat([rgba[:, 0], rgba[:, -1], rgba[:, :, 0], rgba[:, :, -1]], 1)
    assert border[..., 3].max() < 0.01 and 0.3 < border[..., :3].mean() < 0.7
    assert 0.05 < rgba[..., 3].mean() < 0.6 and (rgba[..., 3] > 0.99).flatten(1).any(1).all()
    assert torch.equal(rgba[[5, 2]], MatteImages(tmp_path / "again", prior, 32, options)(np.array([5, 2])))


def test_processes_train_the_matte_on_different_new_images() -> None:
    chosen: list[int] = []

    def images(entries: np.ndarray) -> torch.Tensor:
        chosen.append(int(entries[0]))
        return torch.rand(len(entries), 32, 32, 4)

    system = MatteSystem(TrainMatteConfig.model_validate(TINY_MATTE), images)  # type: ignore[arg-type]
    for rank in range(2):
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=2)
        system._trainer = trainer
        system.training_step(0, 0)
    assert chosen == [8, 11]
