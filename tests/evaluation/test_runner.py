import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.asset_folder import captions, make_assets
from tests.support.task_server import prior_folder
from tests.support.tiny_prior import tiny_prior
from threedgen import cli
from threedgen.config import load
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, split
from threedgen.data.latent_cache import Captioned
from threedgen.evaluation.prior import OwnPrior
from threedgen.evaluation.view_use import Objects, measure_view_use
from threedgen.geometry.images import to_uint8, write_png
from threedgen.geometry.rigs import orbit
from threedgen.train.task import Task


@pytest.fixture(scope="module")
def prior() -> Any:
    return tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)


@pytest.fixture(scope="module")
def objects(prior: Any) -> Objects:
    size = prior.image_size
    rgb = np.random.default_rng(0).random((20, size, size, 3), np.float32)
    c2w = np.tile(orbit(4, 0.2, 2.6, 0.7, size, size).c2w.numpy(), (5, 1, 1))
    return Objects.encoded(prior, Captioned(rgb, list("abcde"), c2w))


def test_ratios_are_one_for_a_prior_that_ignores_other_views(prior: Any, objects: Objects, monkeypatch) -> None:
    real = prior.denoise
    monkeypatch.setattr(prior, "denoise", lambda x, t, text, camera, n_view: real(x, t, text, camera, 1))
    figures = measure_view_use(prior, objects, 0)
    for row in figures["levels"]:
        for name in ("true_over_alone", "wrong_over_alone"):
            assert row[name]["mean"] == pytest.approx(1, abs=1e-4)


def test_true_views_help_a_prior_that_copies_them(prior: Any, objects: Objects, monkeypatch) -> None:
    def copies(x: Tensor, t: Tensor, text: Tensor, camera: Tensor, n_view: int) -> Tensor:
        """The noise if view 0 had the clean latents of view 1, as noise hides them."""
        alpha, sigma = prior.schedule.alpha_sigma(t, x)
        seen = (x / alpha).unflatten(0, (-1, n_view)).roll(-1, 1).flatten(0, 1)
        return (x - alpha * seen) / sigma

    z = torch.randn(objects.z[:, :1].shape, generator=torch.Generator().manual_seed(0))
    same = objects._replace(z=z.expand(-1, 4, -1, -1, -1))
    monkeypatch.setattr(prior, "denoise", copies)
    figures = measure_view_use(prior, same, 0)
    assert figures["clean"]["mean"] < figures["variance"]
    least = figures["levels"][0]
    assert least["true_over_alone"]["mean"] < 0.1 and least["true"]["mean"] < 0.5 * least["wrong"]["mean"]


OWN = ["--config", "evaluate-own-prior", "data=assets", "n_view=2", "views.size=16", "views.azimuths=4", "engine=here"]
OWN += ["threads=1", "out=run", "-q"]


def test_renders_are_nearer_than_samples_and_nothing_is_sampled_twice(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    command = [*OWN, f"prior.weights={prior_folder()}", "steps=1", "batch=4"]
    assert cli.main(command) == 0
    figures = json.loads(Path("run/report.json").read_text())
    assert figures["samples"]["fid"]["mean"] > figures["other renders"]["fid"]["mean"] >= 0
    near, far = figures["other renders"]["likeness"], figures["samples"]["likeness"]
    assert far["high"] < near["low"] <= near["mean"] <= 1
    assert figures["view_use"]["clean"]["mean"] > 0 and "copied" in figures["view_use"]
    assert "| samples | " in Path("run/report.md").read_text() and Path("run/samples.png").exists()
    kept = {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()}
    assert len(kept) == 2 and cli.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()} == kept
    assert json.loads(Path("run/report.json").read_text()) == figures
    captions(Path("assets"), {"box.glb": "a red box"})
    assert cli.main([*command, "out=one"]) == 0
    assert not json.loads(Path("one/report.json").read_text())["view_use"]


def test_held_out_assets_are_those_that_a_training_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    measured = OwnPrior(Task(load("evaluate-own-prior", [*OWN[2:-1], "held_out=2", "existing=assets"]), quiet=True))
    shards = Shards(Path("run/views"))
    assert measured.entries == split(shards, 2, "held-out") and len(measured.entries) == 2 < len(shards)


def test_existing_views_on_white_are_compared_with_renders_on_white(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    command = [*OWN, "existing=mine"]
    Path("mine").mkdir()
    assert cli.main(command) == 2  # says what is missing
    wanted = list(csv.DictReader(Path("run/wanted.csv").open()))
    assert {"file", "prompt", "azimuth", "elevation", "fov", "distance"} == set(wanted[0]) and len(wanted) == 2 * 6
    assert all(0.9 <= float(row["distance"]) * np.tan(np.deg2rad(float(row["fov"])) / 2) <= 1.1 for row in wanted)
    shards = Shards(Path("run/views"))
    views = AssetViews(shards, shards.entries, 0, 2).render_examples(range(len(shards)), 16, np.ones(3))
    for number, image in enumerate(to_uint8(views.rgb)):
        write_png(Path(f"mine/{number // 2:05d}/{number % 2}.png"), image)
    assert cli.main(command) == 0 and "mine" not in caplog.text
    found = json.loads(Path("run/report.json").read_text())["samples"]
    assert found["fid"]["mean"] == pytest.approx(0, abs=1e-3) and found["likeness"]["mean"] == pytest.approx(1)
