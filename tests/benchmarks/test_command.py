"""Benchmarks at a tiny size; speed itself is not tested."""

import functools
import importlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import clock, hashgrid, janus, mvdream, scene, step, whole_run
from benchmarks.clock import Case, paired
from benchmarks.scene import Bench
from benchmarks.table import Table
from tests.support.errors import refused
from tests.support.tiny_prior import tiny_prior
from threedgen.config import registry

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


def test_out_of_memory_case_is_a_row() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError

    base, own = paired({"base": Case(full), "own": Case(lambda: None)}, "base", 1)
    assert base["min, ms"] == "out of memory" and base["ratio"] == own["ratio"] == "-" and own["max, ms"] > 0


def test_table_text_is_aligned_markdown() -> None:
    rows = [{"case": "new", "ms": 1.234, "n": 5}, {"case": "older", "ms": 123.4, "n": 60}]
    table = Table("Speed", rows, ["So."])
    lines = ["| case  |    ms |   n |", "| ----- | ----: | --: |", "| new   |  1.23 |   5 |", "| older | 123.4 |  60 |"]
    assert table.text().splitlines() == ["## Speed", "", *lines, "", "So."]


def test_hashgrid_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashgrid, "SIZES", [("tiny", {"n_levels": 2, "log2_hashmap_size": 6}, 50)])
    rows = hashgrid.table(2).rows
    assert [row["case"] for row in rows] == ["torch", "numba"] and rows[0]["ratio"] == 1
    assert min(rows[1]["min, ms"], rows[1]["ratio"]) > 0 and rows[1]["points"] == 50


def test_step_variants_compute_the_same_field(bench: Bench) -> None:
    slow = bench.system(*step.TWINS, *step.NO_SKIPPING)
    fast = bench.system()
    assert slow.occupancy is None and fast.occupancy is not None
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.allclose(slow.field.density(x), fast.field.density(x), rtol=1e-4, atol=1e-6)


def test_step_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert any(p.grad is not None and p.grad.any() for p in system.parameters())


@pytest.mark.parametrize("setting", ["warn", "true", "false"])
def test_steps_use_the_deterministic_setting_of_a_run(bench: Bench, setting: str) -> None:
    system, modes = bench.system(f"trainer.deterministic={setting}"), []

    def training_step(step: int, index: int) -> torch.Tensor:
        modes.append(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )
        return sum(p.sum() for p in system.parameters())

    system.training_step = training_step
    scene.steps(system, 0, 1)()
    assert modes == [(setting != "false", setting == "warn")]
    assert not torch.are_deterministic_algorithms_enabled()


def test_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with refused("--run", tmp_path):
        scene.load_state(tmp_path)


def test_command_prints_tables_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashgrid, "SIZES", [("tiny", {"n_levels": 2, "log2_hashmap_size": 6}, 50)])
    out = tmp_path / "new" / "record.json"
    assert command.main(["hashgrid", "--rounds", "1", "--out", str(out), "threads=1"]) == 0
    assert "| tiny" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["tables"][0]["rows"][0]["grid"] == "tiny" and record["options"] == ["threads=1"]
    assert record["machine"]["threads"]["torch"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["hashgird"], ["'hashgird'", "hashgrid, step"]),
        (["threads=1"], ["hashgrid, step"]),
        (["hashgrid", "--rounds", "0"], ["--rounds is 0"]),
        (["hashgrid", "--grid", "513"], ["--grid is 513", "64", "512"]),
        (["janus", "--seconds", "0"], ["--seconds is 0"]),
    ],
)
def test_command_refuses_invalid_arguments(
    args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and all(part in error for part in parts)


def test_whole_run_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "launch.py").write_text("import sys; open(sys.argv[-1], 'a').write(' '.join(sys.argv[1:-1]) + '\\n')")
    jobs: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def recorded(*args: Any, **options: Any) -> subprocess.Popen:
        jobs.append(popen(*args, **options))
        return jobs[-1]

    monkeypatch.setattr(whole_run, "folder", lambda name: tmp_path / name)
    monkeypatch.setattr(subprocess, "Popen", recorded)
    alone, beside = whole_run.table(2, [str(tmp_path / "log")]).rows
    assert [alone["case"], beside["case"]] == ["alone", "beside a busy core"]
    assert alone["ratio"] == 1 and beside["ratio"] > 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 6 and all(line.startswith("--config quick-toybox --quiet prompt=") for line in lines)
    busy = [job for job in jobs if whole_run.BUSY_LOOP in job.args]
    assert len(busy) == 3 and all(job.returncode == -signal.SIGKILL for job in busy)


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


NARROW = {
    "sample_size": 8, "block_out_channels": (32, 32), "attention_head_dim": 4, "use_linear_projection": True,
    "cross_attention_dim": 64, "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def test_mvdream_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvdream, "UNET", NARROW)
    short = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    monkeypatch.setattr(mvdream, "VAE", short | {"up_block_types": ("UpDecoderBlock2D",) * 2})
    words = [
        *TINY, "size={0: 8, 4: 16}", "occupancy.warmup=3", "prior.dtype=fp32", "trainer.precision=32-true",
        "trainer.accelerator=cpu", "scenes_per_step=1",
    ]  # fmt: skip
    rows = mvdream.table(1, 16, words).rows
    assert [(row["config"], row["case"]) for row in rows] == [
        (config, variant) for config in mvdream.CONFIGS for variant in mvdream.VARIANTS
    ]
    assert all(row["min, ms"] > 0 and row["ratio"] > 0 for row in rows)
    assert all(("peak GB" in row) == torch.cuda.is_available() for row in rows)
    with refused("--size", "8, 16", 32):
        mvdream.table(1, 32, words)


def test_janus_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLE, "task", dict(registry.TABLE["task"]))  # removes the task "wait" after the test
    monkeypatch.setattr(janus, "WORKERS", (1,))
    monkeypatch.setattr(janus, "installed", lambda module: False)
    table = janus.table(0.1)
    (row,) = table.rows
    assert (row["engine"], row["workers"], row["jobs"]) == ("processes", 1, janus.JOBS_PER_WORKER)
    assert row["pause, ms"] > 0 and row["overhead, %"] == pytest.approx(row["pause, ms"] / 0.1 / 10)
    assert 0 < row["speed-up"] < 1 and "Ray" in table.notes[-1]
