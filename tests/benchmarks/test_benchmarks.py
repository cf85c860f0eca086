import functools
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    clock,
    export,
    export_asset,
    gaussians,
    gpu_networks,
    hashgrid,
    here,
    janus,
    mvadapter,
    mvdiffusion,
    mvdiffusion_sides,
    mvdream,
    scene,
    soak,
    step,
)
from benchmarks.clock import Case, paired
from benchmarks.export import METRICS, Metric
from benchmarks.export_asset import Job
from benchmarks.scene import Bench
from benchmarks.table import Table
from tests.support.ball_run import ball_run, register
from tests.support.errors import refused
from tests.support.tiny_mvadapter import tiny_model
from tests.support.tiny_prior import tiny_prior
from threedgen.config import registry
from threedgen.export.options import AssetConfig

TINY = [
    "threads=1", "march.samples=16", "field.width=8", "field.encoding.n_levels=2",
    "field.encoding.log2_hashmap_size=8", "occupancy.resolution=8", "occupancy.interval=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    tiny_prior().save(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "FIT_STEPS", 3)
        patch.setattr(scene, "FIT_SIZE", 12)
        return Bench([*TINY, f"prior.weights={folder}"])


def test_cases_are_interleaved_and_compared_per_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    durations = {"base": iter([9.0, 1.0, 2.0, 3.0]), "own": iter([9.0, 4.0, 12.0, 180.0])}

    def case(name: str) -> Case:
        def run() -> None:
            order.append(name)
            now[0] += next(durations[name])

        return Case(run, 2 if name == "own" else 1)

    base, own = paired({name: case(name) for name in durations}, "base", 3)
    assert order == ["base", "own"] * 4
    assert base == {"case": "base", "min, ms": 1e3, "median, ms": 2e3, "max, ms": 3e3, "ratio": 1}
    assert own == {"case": "own", "min, ms": 2e3, "median, ms": 6e3, "max, ms": 90e3, "ratio": 3}


def test_table_text_is_aligned_markdown() -> None:
    rows = [{"case": "new", "ms": 1.234, "n": 5}, {"case": "older", "ms": 123.4, "n": 60}]
    lines = ["| case  |    ms |   n |", "| ----- | ----: | --: |", "| new   |  1.23 |   5 |", "| older | 123.4 |  60 |"]
    assert Table("Speed", rows, ["So."]).text().splitlines() == ["## Speed", "", *lines, "", "So."]


def test_gaussians_table_counts_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussians, "SIZES", [(30, 2, 16)])
    torch_row, numba_row = gaussians.table(1).rows
    assert (torch_row["case"], numba_row["case"]) == ("torch", "numba") and torch_row["Gaussians"] == 30
    assert numba_row["pairs"] > 30 and numba_row["ns per pair"] == 1e6 * numba_row["median, ms"] / numba_row["pairs"]


def test_command_prints_hashgrid_table_and_writes_json(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(hashgrid, "SIZES", [("tiny", {"n_levels": 2, "log2_hashmap_size": 6}, 50)])
    out = tmp_path / "new" / "record.json"
    assert command.main(["hashgrid", "--rounds", "1", "--out", str(out), "threads=1"]) == 0
    assert "| tiny" in capsys.readouterr().out
    record = json.loads(out.read_text())
    rows = record["tables"][0]["rows"]
    assert [row["case"] for row in rows] == ["torch", "numba"] and rows[1]["points"] == 50 and rows[1]["ratio"] > 0
    assert record["options"] == ["threads=1"] and record["machine"]["threads"]["torch"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["hashgird"], ["'hashgird'", "hashgrid, gaussians"]),
        (["hashgrid", "--rounds", "0"], ["--rounds is 0"]),
        (["hashgrid", "--grid", "513"], ["--grid is 513", "64", "512"]),
    ],
)
def test_command_refuses_invalid_arguments(args: list[str], parts: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and all(part in error for part in parts)


def test_each_benchmark_receives_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, dict] = {}
    for name in command.BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        table = functools.wraps(module.table)(
            lambda name=name, **options: received.update({name: options}) or Table("", [{}])
        )
        monkeypatch.setattr(module, "table", table)
    words = ["--rounds", "2", "--size", "16", "--seeds", "1", "--grid", "64", "--seconds", "3", "--run", "a/b", "c"]
    words += ["--reference", "d", "--views", "6", "--steps", "4", "--widths", "64,128"]
    assert command.main([*command.BENCHMARKS, "threads=1", *words]) == 0
    common = {"rounds": 2, "size": 16, "overrides": ["threads=1"]}
    assert received["hashgrid"] == {"rounds": 2} and received["whole_run"] == {"rounds": 2, "overrides": ["threads=1"]}
    assert received["janus"] == {"seconds": 3.0} and received["mvdream"] == common
    runs = [Path("a/b"), Path("c")]
    mvdiffusion = {"reference": Path("d"), "views": 6, "size": 16, "steps": 4, "widths": (64, 128), "device": "cpu"}
    assert received["mvdiffusion"] == mvdiffusion
    assert received["step"] == common | {"runs": runs} and received["export"] == {"seeds": 1, "grid": 64, "runs": runs}


def test_step_variants_compute_the_same_field_and_have_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = bench.system(*step.TWINS, *step.NO_SKIPPING), bench.system()
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert slow.occupancy is None and fast.occupancy is not None
    assert torch.allclose(slow.field.density(x), fast.field.density(x), rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(step, "Bench", lambda overrides, run: bench)
    rows = step.table(1, 8, [], None).rows
    assert [row["case"] for row in rows] == list(step.VARIANTS)
    assert rows[0]["ratio"] == 1 and all(row["min, ms"] > 0 and row["ratio"] > 0 for row in rows)


def test_frozen_step_keeps_the_parameters(bench: Bench) -> None:
    for frozen in (True, False):
        system = bench.system("size=8")
        before = [p.detach().clone() for p in system.parameters()]
        scene.steps(system, 0, 1, frozen=frozen)()
        same = [torch.equal(a, b) for a, b in zip(before, system.parameters(), strict=True)]
        assert all(same) if frozen else not all(same)


@pytest.mark.parametrize("exact", [True, False])
def test_stepper_sets_the_flags_of_a_run(bench: Bench, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    system, found = bench.system("size=8", f"trainer.deterministic={str(exact).lower()}"), []

    def training_step(step: int, index: int) -> torch.Tensor:
        found.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return system.field.density(torch.zeros(1, 3)).sum()

    monkeypatch.setattr(system, "training_step", training_step)
    scene.stepper(system)(0)
    assert found == [(exact, not exact)]


def test_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with refused("--run", tmp_path):
        scene.load_state(tmp_path)


def test_here_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[tuple[str, ...]] = []

    def launch(config: str, out: Path, *overrides: str) -> None:
        words.append((config, *overrides))
        out.mkdir()
        lines = ["step,step_seconds,distillation", "10,9,", "20,0.25,1.5", "30,0.5,1.5", "40,0.125,1.5"]
        (out / "metrics.csv").write_text("\n".join(lines))

    monkeypatch.setattr(here, "launch", launch)
    found = here.table(["threads=1"])
    assert [line[0] for line in words] == ["mvdream-toybox", "quick-toybox", "export"]
    assert words[0][1:] == words[1][1:] == ("prompt=a red penguin", "threads=1") and words[2][1].endswith("demo")
    own, *others = found.rows
    assert own["step, ms"] == "250" and {"50 - 53", "126"} <= {row["demo, s"] for row in others}
    assert '"step, ms": [250.0, 250.0]' in found.notes[0] and found.text().count("\n| ") == len(found.rows) + 2


def test_mvdream_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvdream, "UNET", gpu_networks.SMALL_UNET)
    monkeypatch.setattr(mvdream, "VAE", gpu_networks.SMALL_VAE)
    words = [
        *TINY, "size={0: 8, 4: 16}", "occupancy.warmup=3", "prior.dtype=fp32", "trainer.precision=32-true",
        "trainer.accelerator=cpu", "scenes_per_step=1",
    ]  # fmt: skip
    rows = mvdream.table(1, 16, words).rows
    assert [(row["config"], row["case"]) for row in rows] == [
        (config, variant) for config in mvdream.CONFIGS for variant in mvdream.VARIANTS
    ]
    assert all(row["min, ms"] > 0 and row["ratio"] > 0 for row in rows)


def test_janus_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLE, "task", dict(registry.TABLE["task"]))  # removes the task "wait" after the test
    monkeypatch.setattr(janus, "WORKERS", (1,))
    monkeypatch.setattr(janus, "installed", lambda module: False)
    (row,) = janus.table(0.1).rows
    assert (row["engine"], row["workers"], row["jobs"]) == ("processes", 1, janus.JOBS_PER_WORKER)
    assert row["overhead, %"] == pytest.approx(row["pause, ms"] / 0.1 / 10) and 0 < row["speed-up"] < 1


def test_mvadapter_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save(tmp_path / "base")
    monkeypatch.setattr(mvadapter, "BASE", str(tmp_path / "base"))
    original = mvadapter.measure

    def measure(case: str, steps: int, device: str) -> mvadapter.Measured:
        result = original(case, steps, device, 1)
        return result._replace(peak=max(1, result.peak))  # this process may have used more memory before

    monkeypatch.setattr(mvadapter, "run_in_process", measure)
    full, text, image = mvadapter.table(2, "cpu").rows
    assert full["ratio"] == full["peak ratio"] == 1 and full["trainable, M"] > 0
    assert 0 < text["trainable, M"] < image["trainable, M"] and text["median, s"] > 0


def views_table(reference: Path | None, **changes: Any) -> Any:
    options = {"views": 8, "size": 32, "steps": 2, "widths": (64, 64), "device": "cpu"}
    return mvdiffusion.table(reference, **(options | changes))


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"size": 24}, "--size", (24, 16)),
        ({"widths": (64, 100)}, "--widths", (64, 100)),
        ({}, "--reference", ("MVDiffusion",)),
    ],
)
def test_invalid_options_of_mvdiffusion_are_refused(tmp_path, monkeypatch, changes, key, values) -> None:
    monkeypatch.setattr(mvdiffusion, "run_in_process", mvdiffusion_sides.measure)
    with refused(key, *values):
        views_table(tmp_path, **changes)


def test_metric_rows() -> None:
    low, zero, free = Metric("", "", low=2), Metric("", "", high=0), Metric("", "")
    row = {"check": "", "bar": ">= 2", "worst": "2", "median": "2.5", "held": "2 of 2", "verdict": "pass"}
    assert low.row([3, 2]) == row
    assert low.row([3, 1])["verdict"] == "FAIL" and low.row([3, 1])["held"] == "1 of 2"
    assert zero.row([0, 0])["verdict"] == "pass" and zero.row([0, 1])["worst"] == "1"
    assert free.row([0.4])["verdict"] not in ("pass", "FAIL")


def test_every_metric_of_the_export_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SAMPLES": 2000, "PIXELS": 64, "VIEWS": 2, "TURNTABLE": 2, "LOW_POLY": 400}.items():
        monkeypatch.setattr(export_asset, name, value)
    register(monkeypatch)
    asset = AssetConfig(budget=600, texture=256, lods=(200, 60), refine=3, height=0.5)
    run, missing = ball_run(tmp_path / "one"), tmp_path / "two"
    jobs = [Job("stool_1", 64, "stool", 1, asset=asset), *(Job(p.name, 64, run=p, asset=asset) for p in (run, missing))]
    table = export.assess(jobs)
    keys = {metric.check: metric.key for metric in METRICS}
    rows = {keys[str(row["check"])]: row for row in table.rows}
    assert list(rows) == [metric.key for metric in METRICS]
    assert rows["made"]["held"] == "2 of 3" and table.notes[1].startswith("two: ")
    assert float(rows["silhouette"]["worst"]) > 0.8 and float(rows["outline"]["worst"]) > 0.5


def test_trends_are_slopes_per_unit() -> None:
    samples = [{"at": float(k), "memory, MiB": 100 + 0.5 * k, "CPU, s": 0.02 * k} for k in range(200)]
    memory, seconds = soak.trends("studio", samples, 100)
    assert memory["slope"] == "+50.0000 [+50.0000, +50.0000]"
    assert seconds["mean"] == pytest.approx(2.0) and str(seconds["slope"])[1:7] == "0.0000"
