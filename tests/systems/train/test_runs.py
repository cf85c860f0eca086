import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.command import refusal
from tests.support.task_server import TINY_BASE, TINY_PRIOR, assert_killed_ends_the_same, finished_run, write_config
from tests.support.tiny_trainings import TRAININGS, adapter_config, dreambooth_config, own_command, scene_config
from threedgen import config
from threedgen.config import Config
from threedgen.config.scheduled import Points
from threedgen.data.latent_cache import sample_entries
from threedgen.guidance.schedule import Schedule
from threedgen.run.metrics import read_summary
from threedgen.systems.train import mvadapter, mvdiffusion, mvdiffusion_systems
from threedgen.systems.train.denoising import COMPANION_MAX, Batch, DenoisingSystem, view_timesteps
from threedgen.systems.train.options import ViewNoiseConfig
from threedgen.train.system import sample_timesteps
from threedgen.train.task import Task


@pytest.mark.parametrize("kind", TRAININGS)
def test_run_leaves_its_files_and_the_recorded_loss(kind: str) -> None:
    run = finished_run(TRAININGS[kind].command)
    summary = read_summary(run)
    assert summary["status"] == "finished" and summary["steps"] == config.load(run / "config.yaml").trainer.max_steps
    assert all((run / name).stat().st_size for name in TRAININGS[kind].files)
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.part"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(TRAININGS[kind].loss, rel=0.02)


@pytest.mark.parametrize("kind", [kind for kind in TRAININGS if kind != "base"])  # toybox/training/test_prior_runs.py
def test_killed_run_resumes_exactly(tmp_path: Path, kind: str) -> None:
    training = TRAININGS[kind]
    assert_killed_ends_the_same(tmp_path, training.command, training.kills, training.files)


def tiny(name: str, folder: Path) -> Path:
    if name == "own":
        return Path(own_command(folder)[1])
    if name.startswith("mvdiffusion"):
        variant = name.partition("-")[2]
        return scene_config(folder, variant, scenes={"name": "toy-paths" if variant == "depth" else "toy-panoramas"})
    trees = {"base": TINY_BASE, "prior": TINY_PRIOR}
    if name in trees:
        return write_config(folder / "tiny.yaml", trees[name])
    return {"mvadapter": adapter_config, "dreambooth": dreambooth_config}[name](folder)


@pytest.mark.parametrize("kind", ["mvadapter", "mvdiffusion"])
def test_processes_train_on_different_new_entries(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = adapter_config(tmp_path) if kind == "mvadapter" else scene_config(tmp_path, "panorama", single_view=None)
    options = config.load(path, [f"out={tmp_path / 'run'}", "training.first=2", "training.fresh=1"])
    monkeypatch.setattr(Task, "train", lambda task, system, **rest: system)
    system: Any = {"mvadapter": mvadapter, "mvdiffusion": mvdiffusion}[kind].train(Task(options, quiet=True))
    module, chosen = mvadapter if kind == "mvadapter" else mvdiffusion_systems, []

    def sample(*values: Any) -> Any:
        chosen.append(sample_entries(*values))
        return chosen[-1]

    monkeypatch.setattr(module, "sample_entries", sample)
    for step, rank in product(range(2), repeat=2):
        system._trainer = SimpleNamespace(global_rank=rank, world_size=2, accumulate_grad_batches=1)
        system.batch(step)
    assert [int(entries[0]) for entries in chosen] == [2, 3, 4, 5]


ERRORS: list[tuple[str, list[str], tuple[Any, ...]]] = [
    ("base", ["image_size=36"], ("image_size 36", "8")),
    ("base", ["network.channels=[16, 40]"], ("channels 40", "16")),
    ("base", ["training.fresh=5"], ("fresh 5", "batch 4")),
    ("base", ["widen=[32, 32]"], ("widen", "start", "network.channels")),
    ("prior", ["training.half=0.5"], ("training.half", "coarse")),
    ("prior", ["training.view_noise={independent: 0.6, companions: 0.6}"], ("companions=0.4",)),
    ("prior", ["start=nowhere"], ("start: ", "'nowhere'")),
    ("own", ["data=nowhere"], ("data: ",)),
    ("own", ["pictures=nowhere"], ("pictures: ", "captions.csv", "'nowhere'")),
    ("own", ["prior.personalisation=dog.safetensors"], ("prior.personalisation",)),
    ("own", ["prior.loras=[style.safetensors]"], ("prior.loras",)),
    ("own", ["training.half=0.3"], ("training.half",)),
    ("mvadapter", ["start=toybox-prior"], ("start: ", "multi-view", "toybox-base")),
    ("mvadapter", ["adapter=nowhere.safetensors"], ("adapter: ", "'nowhere.safetensors'")),
    ("mvadapter", ["control=geometry"], ("training.view_sets", "control=rays")),
    ("mvadapter", ["control=geometry", "anywhere=0.5"], ("anywhere", "control=rays")),
    ("mvadapter", ["training.view_sets=[[0, 6]]"], ("view_sets", "0 to 5", "[0, 6]")),
    ("mvadapter", ["guider_downscale=3"], ("start: ", "2", "3")),
    ("mvadapter", ["image_size=15"], ("15", "2")),
    ("mvdiffusion-depth", ["scenes.name=toy-panoramas"], ("variant depth",)),
    ("mvdiffusion-depth", ["training.encoding=reference", "scenes.height=20", "scenes.width=20"], ("scenes: ", "24")),
    ("mvdiffusion-outpaint", ["scenes.size=17"], ("scenes: ", "17 x 17", "4", "16", "20")),
    ("mvdiffusion-depth", ["single_view=null"], ("start: ", "single_view", "depth")),
    ("dreambooth", ["photos=none"], ("photos: ", "'none'")),
    ("dreambooth", ["photos=photos/0.png"], ("photos: ", "one")),
    ("dreambooth", ["prompt="], ("prompt: ", "a [v] dog")),
    ("dreambooth", ["identifier=dog"], ("identifier: ", "'dog'")),
    ("dreambooth", ["prior.personalisation=x.safetensors"], ("prior.personalisation",)),
    ("dreambooth", ["prior.dtype=fp16"], ("prior.dtype", "bf16", "fp32")),
    ("train-threedim-toybox", ["model.network.image_size=[16,32]"], ("network", "16 x 32")),
    ("train-threedim-toybox", ["data.held_out=5000"], ("5000", "scenes")),
    ("train-threedim-toybox", ["model.start=/nowhere"], ("model.start: ", "'/nowhere'")),
    ("train-toybox-prior", [], ("start: ", "outputs/train-toybox-base/run/base", "--config train-toybox-base")),
]


@pytest.mark.parametrize(("name", "words", "values"), ERRORS, ids=lambda value: str(value)[:40])
def test_error_is_one_line_with_key_and_values(tmp_path, monkeypatch, capsys, name, words, values) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = name.startswith(("train-", "threedim-"))
    line = refusal(capsys, "--config", name if shipped else str(tiny(name, tmp_path)), "out=run", *words)
    assert all(value in line for value in values), line


T, OBJECTS, VIEWS = 1000, 600, 4


def sample(seed: int = 0, **shares: float) -> torch.Tensor:
    t = view_timesteps(OBJECTS, VIEWS, T, 0.7, ViewNoiseConfig(**shares), torch.Generator().manual_seed(seed))
    assert t.shape == (OBJECTS, VIEWS) and t.dtype == torch.int64 and 0 <= t.min() and t.max() < T
    return t


def test_noise_levels_of_views_and_logit_normal_timesteps() -> None:
    t = sample()
    assert (t == t[:, :1]).all() and t[:, 0].float().mean() > T / 2  # a power below 1 favours noise
    t = sample(independent=1.0)
    assert ((t != t[:, :1]).sum(1) >= 2).float().mean() > 0.95
    t = sample(companions=1.0)
    for row in t:
        little = row < COMPANION_MAX * T
        assert 1 <= little.sum() and row[~little].unique().numel() <= 1
    assert (t.amax(1) > t.amin(1)).float().mean() > 0.95
    t = sample(independent=0.2, companions=0.5)
    assert 0.22 < (t == t[:, :1]).all(1).float().mean() < 0.38
    assert torch.equal(t, sample(independent=0.2, companions=0.5)) and not torch.equal(t, sample(1, independent=0.2))
    options, rng = ViewNoiseConfig(independent=0.5, companions=0.5), torch.Generator().manual_seed(0)
    assert view_timesteps(8, 1, T, 1.0, options, rng).shape == (8, 1)
    t = sample_timesteps(4000, T, 2.0, torch.Generator().manual_seed(0), (-0.4, 0.5))
    logit = torch.logit((t + 0.5) / T)
    assert abs(logit.mean() + 0.4) < 0.01 and abs(logit.std() - 0.5) < 0.01


class Zero:
    """A model whose output is 0."""

    schedule = Schedule.linear(T=T)

    def network(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_schedule_of_time_steps_counts_optimisation_steps() -> None:
    system = DenoisingSystem(Config(), Zero(), seed=0, max_steps=10)  # type: ignore[arg-type]
    system.timestep_power = Points({0: 0.5, 10: 3.0})
    expected = system.sample_noise(2, (8, 1, 1, 1, 1), torch.Generator().manual_seed(0))[0]
    trainer: Any = SimpleNamespace(accumulate_grad_batches=3)
    system._trainer = trainer
    for batch in (6, 8):
        found = system.sample_noise(batch, (8, 1, 1, 1, 1), torch.Generator().manual_seed(0))[0]
        assert torch.equal(found, expected)


def test_loss_weights_images_or_pixels() -> None:
    system = DenoisingSystem(Config(), Zero(), seed=0, max_steps=1)  # type: ignore[arg-type]
    noise, t = torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]]), torch.tensor([3, 700])
    batch = Batch(torch.zeros_like(noise), t, noise, torch.zeros(2, 1, 1))
    assert system.denoising_loss(batch).item() == 3.5
    images, pixels = torch.tensor([0.5, 2.0])[:, None, None, None], torch.tensor([[[[1.0, 0.0]]], [[[2.0, 1.0]]]])
    assert system.denoising_loss(replace(batch, weights=images)).item() == (0.5 * 5 + 2 * 2) / 2
    assert system.denoising_loss(replace(batch, weights=pixels)).item() == (1 + 2 * 4) / 4
    assert system.denoising_loss(replace(batch, weights=torch.ones(2, 1, 1, 1))).item() == 3.5
