"""Use of the other views on tiny priors, and the task "evaluate-own-prior"."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.asset_folder import make_assets
from tests.support.task_server import prior_folder
from tests.support.tiny_prior import tiny_prior
from threedgen import cli
from threedgen.data.latent_cache import Captioned
from threedgen.evaluation.prior import Objects, compare, view_use, view_use_table
from threedgen.geometry.rigs import orbit


@pytest.fixture(scope="module")
def prior() -> Any:
    return tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)


@pytest.fixture(scope="module")
def objects(prior: Any) -> Objects:
    size = prior.image_size
    rgb = np.random.default_rng(0).random((20, size, size, 3), np.float32)
    c2w = np.tile(orbit(4, 0.2, 2.6, 0.7, size, size).c2w.numpy(), (5, 1, 1))
    return Objects.encoded(prior, Captioned(rgb, list("abcde"), c2w))


def test_ratios_are_one_for_a_prior_that_ignores_other_views(
    prior: Any, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prior.denoise
    monkeypatch.setattr(prior, "denoise", lambda x, t, text, camera, n_view: real(x, t, text, camera, 1))
    figures = view_use(prior, objects, 0)
    for row in figures["levels"]:
        for name in ("true_over_alone", "wrong_over_alone"):
            assert row[name]["mean"] == pytest.approx(1, abs=1e-4)


def test_true_views_help_a_prior_that_copies_them(
    prior: Any, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copies(x: Tensor, t: Tensor, text: Tensor, camera: Tensor, n_view: int) -> Tensor:
        """The noise if view 0 had the clean latents of view 1, as noise hides them."""
        alpha, sigma = prior.schedule.alpha_sigma(t, x)
        seen = (x / alpha).unflatten(0, (-1, n_view)).roll(-1, 1).flatten(0, 1)
        return (x - alpha * seen) / sigma

    z = torch.randn(objects.z[:, :1].shape, generator=torch.Generator().manual_seed(0))
    same = objects._replace(z=z.expand(-1, 4, -1, -1, -1))
    monkeypatch.setattr(prior, "denoise", copies)
    figures = view_use(prior, same, 0)
    assert figures["clean"]["mean"] < figures["variance"]
    least = figures["levels"][0]
    assert least["true_over_alone"]["mean"] < 0.1 and least["true"]["mean"] < 0.5 * least["wrong"]["mean"]


def test_figures_are_json_and_repeatable(prior: Any, objects: Objects) -> None:
    assert objects.z.shape == (5, 4, *prior.latent_shape) and objects.c2w.shape == (5, 4, 4, 4)
    first, again = (view_use(prior, objects, 3) for _ in range(2))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert all(f"| {row['t']} |" in view_use_table(first) for row in first["levels"])


def test_renders_are_nearer_than_samples_and_nothing_is_sampled_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    command = ["--config", "evaluate-own-prior", "data=assets", f"prior.weights={prior_folder()}", "n_view=2"]
    command += ["steps=1", "views.size=16", "views.azimuths=4", "engine=here", "threads=1", "batch=4", "out=run", "-q"]
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


def test_existing_views_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    Path("mine").mkdir()
    command = ["--config", "evaluate-own-prior", "data=assets", "existing=mine", "n_view=2", "out=run", "-q"]
    command += ["views.size=16", "views.azimuths=4", "engine=here", "threads=1"]
    assert cli.main(command) == 2  # says what is missing
    wanted = list(csv.DictReader(Path("run/wanted.csv").open()))
    assert {"file", "prompt", "azimuth", "elevation"} == set(wanted[0]) and len(wanted) % 2 == 0
    for number, row in enumerate(wanted):
        path = Path("mine", row["file"]).with_suffix(".webp")
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (8 * number, 9, 99)).save(path)
    assert cli.main(command) == 0
    figures = json.loads(Path("run/report.json").read_text())
    assert figures["samples"]["fid"]["mean"] > figures["other renders"]["fid"]["mean"] and not figures["view_use"]


def test_distances_of_equal_and_shifted_features() -> None:
    truth = np.random.default_rng(0).normal(size=(30, 2, 3)) + 2
    same, shifted = compare(truth, truth), compare(truth + 1, truth)
    assert abs(same["fid"]["mean"] or 0) < 1e-6 and same["likeness"]["mean"] == pytest.approx(1)
    assert shifted["fid"]["mean"] == pytest.approx(3, rel=1e-3) and (shifted["fid"]["low"] or 9) <= 3.001
