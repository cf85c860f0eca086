import csv
import json
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.asset_folder import captions, make_assets
from tests.support.task_server import prior_folder
from tests.support.tiny_prior import tiny_prior
from threedgen import cli
from threedgen.config import load
from threedgen.config.sections import RunConfig
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, split
from threedgen.data.latent_cache import Captioned
from threedgen.evaluation.existing import read_existing
from threedgen.evaluation.prior import OwnPrior
from threedgen.evaluation.report import csv_tables, format_estimate, write_report
from threedgen.evaluation.runner import Evaluation, cached_json, evaluation_task
from threedgen.evaluation.view_use import Objects, measure_view_use, view_use_table
from threedgen.geometry.images import to_uint8, write_png
from threedgen.geometry.rigs import orbit
from threedgen.run.workers import LocalProcess, Worker
from threedgen.train.task import Task


def square(item: int) -> int:
    return item * item


class Squares(Evaluation[RunConfig, int, int]):
    """Squares of numbers; Ctrl-C arrives while ``stop_at`` is measured."""

    stop_at: int | None = None

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.items, self.work = [1, 2, 3], square

    def measure(self, item: int) -> int:
        if item == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        return cached_json(self.folder / f"{item}.json", lambda: {"square": square(item)})["square"]

    def report(self, rows: list[int]) -> None:
        write_report(self.task, "report", {"rows": sorted(rows)}, "text\n")


run = evaluation_task(Squares)


def config(folder: Path) -> RunConfig:
    return RunConfig(task="squares", out=str(folder))


def test_items_become_rows_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config(tmp_path), quiet=True) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == {"rows": [1, 4, 9]}
    assert json.loads((tmp_path / "summary.json").read_text())["files"] == ["report.md", "report.json"]
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.md")


def test_small_numbers_have_more_decimals() -> None:
    for mean, digits in ((-0.00213, 5), (0.6667, 3)):
        text = format_estimate({"mean": mean, "low": mean - 1e-3, "high": mean + 1e-3})
        assert text.split()[0] == str(round(mean, digits)) and str(round(mean + 1e-3, digits)) in text


def test_ctrl_c_stops_after_the_item_and_the_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stop_at, done in ((2, 2), (3, 3)):
        monkeypatch.setattr(Squares, "stop_at", stop_at)
        assert run(config(tmp_path), quiet=True) == 130
        assert not (tmp_path / "report.json").exists() and len(list(tmp_path.glob("?.json"))) == done
    monkeypatch.setattr(Squares, "stop_at", None)
    assert run(config(tmp_path), quiet=True) == 0 and (tmp_path / "report.json").exists()


def test_workers_measure_by_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threedgen.run.worker_pool.LocalProcess", lambda gpu: Worker())
    assert issubclass(LocalProcess, Worker)
    monkeypatch.setattr(Squares, "workers", 2)
    assert run(config(tmp_path), quiet=True) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == {"rows": [1, 4, 9]}
    assert not list(tmp_path.glob("?.json"))


def test_kept_json_is_made_again_for_another_key(tmp_path: Path) -> None:
    path, made = tmp_path / "a" / "kept.json", list[int]()

    def make() -> dict[str, int]:
        made.append(len(made))
        return {"value": made[-1]}

    assert cached_json(path, make, seed=1) == cached_json(path, make, seed=1) == {"value": 0, "seed": 1}
    assert cached_json(path, make, seed=2)["value"] == 1
    path.write_text("{")
    assert cached_json(path, make, seed=2)["value"] == 2


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


def test_figures_are_json_and_repeatable(prior: Any, objects: Objects) -> None:
    assert objects.z.shape == (5, 4, *prior.latent_shape) and objects.c2w.shape == (5, 4, 4, 4)
    first, again = (measure_view_use(prior, objects, 3) for _ in range(2))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert all(f"| {row['t']} |" in view_use_table(first) for row in first["levels"])


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


def test_tables_of_a_report_are_csv_files() -> None:
    share = {"share": 0.5, "low": 0, "high": None}
    figures = {"a b": {"x": {"fid": share, "n": 2, "each": [1]}}, "rows": [{"k": 1}, {"m": True}], "one": share, "n": 3}
    assert csv_tables(figures) == {
        "": "name,share,low,high\none,0.5,0,\n",
        "a-b": "name,fid.share,fid.low,fid.high,n\nx,0.5,0,,2\n",
        "rows": "k,m\n1,\n,True\n",
    }


def test_existing_views_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    Path("mine").mkdir()
    command = [*OWN, "existing=mine"]
    assert cli.main(command) == 2  # says what is missing
    wanted = list(csv.DictReader(Path("run/wanted.csv").open()))
    assert {"file", "prompt", "azimuth", "elevation", "fov", "distance"} == set(wanted[0]) and len(wanted) % 2 == 0
    assert all(0.9 <= float(row["distance"]) * np.tan(np.deg2rad(float(row["fov"])) / 2) <= 1.1 for row in wanted)
    for number, row in enumerate(wanted):
        path = Path("mine", row["file"]).with_suffix(".webp")
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), (8 * number, 9, 99)).save(path)
    assert cli.main(command) == 0
    figures = json.loads(Path("run/report.json").read_text())
    assert figures["samples"]["fid"]["mean"] > figures["other renders"]["fid"]["mean"] and not figures["view_use"]


def test_existing_views_on_white_are_compared_with_renders_on_white(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    command = [*OWN, "existing=mine"]
    Path("mine").mkdir()
    assert cli.main(command) == 2
    shards = Shards(Path("run/views"))
    views = AssetViews(shards, shards.entries, 0, 2).render_examples(range(len(shards)), 16, np.ones(3))
    for number, image in enumerate(to_uint8(views.rgb)):
        write_png(Path(f"mine/{number // 2:05d}/{number % 2}.png"), image)
    assert cli.main(command) == 0 and "mine" not in caplog.text
    found = json.loads(Path("run/report.json").read_text())["samples"]
    assert found["fid"]["mean"] == pytest.approx(0, abs=1e-3) and found["likeness"]["mean"] == pytest.approx(1)


def test_existing_views_are_not_kept_as_floats(tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / f"{number:05d}").mkdir()
        Image.new("RGB", (256, 256)).save(tmp_path / f"{number:05d}" / "0.png")
    c2w = orbit(1, 0.2, 2.6, 0.7, 256, 256).c2w.expand(16, 1, 4, 4)
    tracemalloc.start()
    views = read_existing(str(tmp_path), tmp_path, ["a"] * 16, c2w, 0.7)
    assert tracemalloc.get_traced_memory()[1] < 5 * views.nbytes
    tracemalloc.stop()
