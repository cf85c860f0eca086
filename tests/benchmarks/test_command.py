"""The benchmarks run and add up; how fast anything is, is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import breakdown, hashgrid, janus, memory, mvdream, scene, step, threedim
from benchmarks.clock import interleaved, machine, ratio
from benchmarks.scene import Bench, Stepper
from benchmarks.table import Table
from tests.support.tiny_prior import tiny_prior
from threedgen.config import ConfigError, registry
from threedgen.representations.options import SubsampledProtocolConfig

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


def test_cases_take_turns() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and [len(seconds[name]) for name in "ab"] == [2, 2]
    assert ratio([2.0, 6.0, 90.0], [1.0, 2.0, 3.0]) == 3.0
    assert machine()["torch threads"] == torch.get_num_threads()


def test_a_table_as_text_markdown_and_json() -> None:
    rows = [{"what": "new", "ms": 1.234, "n": 5}, {"what": "older", "ms": 123.4, "n": 60}]
    table = Table("Speed", rows, ["So."])
    lines = ["what      ms   n", "new     1.23   5", "older  123.4  60", "So."]
    assert table.text().splitlines()[2:] == lines
    assert "| new | 1.23 | 5 |" in table.markdown() and "|---" not in table.markdown().splitlines()[0]
    assert json.loads(json.dumps(table.json()))["rows"][1]["n"] == 60


def test_the_hash_grid_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashgrid, "SIZES", [("tiny", {"n_levels": 2, "log2_hashmap_size": 6}, 50)])
    (row,) = hashgrid.table(2).rows
    assert row["points"] == 50 and min(row["numba ms"], row["torch ms"], row["times faster"]) > 0


def test_all_variants_of_a_step_compute_the_same_field(bench: Bench) -> None:
    slow = bench.system(*scene.TWINS, *scene.NO_SKIPPING)
    fast = bench.system()
    assert slow.occupancy is None and fast.occupancy is not None
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.allclose(slow.field.density(x), fast.field.density(x), rtol=1e-4, atol=1e-6)


def test_a_step_against_its_twins(bench: Bench) -> None:
    rows = step.table(bench, rounds=1, size=8, ablations=True).rows
    assert len(rows) == 4 and rows[0]["times the default"] == 1 and all(row["seconds"] > 0 for row in rows)
    points = {row["step"]: row["points"] for row in rows}
    assert points[step.SLOW] >= points[step.DEFAULT] > 0


def test_a_frozen_step_changes_nothing(bench: Bench) -> None:
    system = bench.system("size=8")
    before = [p.detach().clone() for p in system.parameters()]
    Stepper(system, frozen=True).step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, system.parameters(), strict=True))
    assert any(p.grad is not None and p.grad.any() for p in system.parameters())


def test_every_part_of_a_step_is_seen(bench: Bench) -> None:
    system = bench.system("size=8")
    stepper = Stepper(system, frozen=True)
    parts = breakdown.step_by_parts(stepper, 0)
    assert set(parts) == {*breakdown.PARTS, "total"} and min(parts.values()) > 0
    assert sum(parts[name] for name in breakdown.PARTS) == pytest.approx(parts["total"])
    assert "forward" not in vars(system.field.encoding), "the stop watches were left behind"


def test_a_run_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint"):
        scene.trained(tmp_path)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashgrid, "SIZES", [("tiny", {"n_levels": 2, "log2_hashmap_size": 6}, 50)])
    assert command.main(["hashgrid", "--rounds", "1", "--out", str(tmp_path), "threads=1"]) == 0
    assert "times faster" in capsys.readouterr().out
    record = json.loads((tmp_path / "benchmarks.json").read_text())
    assert record["tables"][0]["rows"][0]["grid"] == "tiny" and record["options"] == ["threads=1"]
    assert "| tiny |" in (tmp_path / "benchmarks.md").read_text()
    with pytest.raises(SystemExit) as stop:
        command.main(["hashgird"])
    assert stop.value.code == 2 and "hashgird" in capsys.readouterr().err


def test_memory_falls_with_the_chunk_and_the_gradient_stays() -> None:
    small = [
        "threads=1", "march.samples=64", "field.encoding.n_levels=4", "field.encoding.log2_hashmap_size=12",
        "march.alpha_threshold=0",
    ]  # fmt: skip
    table = memory.table(48, small, chunks=(None, 4096))
    assert "march.samples=64" in table.notes[0] and "48 x 48" in table.notes[0]
    whole, parts = table.rows
    assert [whole["march.chunk"], parts["march.chunk"]] == ["null (one pass)", "4096"]
    assert float(parts["gradient norm"]) == pytest.approx(float(whole["gradient norm"]), rel=1e-5)
    assert float(parts["MiB"]) < 0.5 * float(whole["MiB"])


NARROW = {
    "sample_size": 8, "block_out_channels": (32, 32), "attention_head_dim": 4, "use_linear_projection": True,
    "cross_attention_dim": 64, "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def test_the_steps_at_full_size_at_a_tiny_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mvdream, "UNET", NARROW)
    short = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    monkeypatch.setattr(mvdream, "VAE", short | {"up_block_types": ("UpDecoderBlock2D",) * 2})
    words = [
        *TINY, "size={0: 8, 4: 16}", "occupancy.warmup=3", "prior.dtype=fp32", "trainer.precision=32-true",
        "trainer.accelerator=cpu", "scenes_per_step=1",
    ]  # fmt: skip
    assert command.main(["mvdream", "--rounds", "1", "--size", "16", "--out", str(tmp_path), *words]) == 0
    (steps,) = json.loads((tmp_path / "benchmarks.json").read_text())["tables"]
    assert [(row["config"], row["step"]) for row in steps["rows"]] == [
        (config, variant) for config in mvdream.CONFIGS for variant in mvdream.VARIANTS
    ]
    for row in steps["rows"]:
        parts = [row[f"{part}, ms"] for part in mvdream.PARTS]
        assert min(parts) > 0 and sum(parts) == pytest.approx(1e3 * row["seconds"])
        assert row["peak GB"] == "not measured"
    with pytest.raises(ConfigError, match="--size: the config renders at 8, 16 pixels, not at 32"):
        mvdream.tables(32, 1, words)


def test_novel_views_and_their_score_at_a_tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZE": 16, "VIEWS": 12, "BATCH": 2, "STEPS": 2, "LONGER": 2}.items():
        monkeypatch.setattr(threedim, name, value)
    monkeypatch.setattr(threedim.torch.nn.Module, "compile", lambda module: None)
    monkeypatch.setattr(threedim, "PROTOCOL", SubsampledProtocolConfig(steps=2, samples=12, rays=64))
    calls, sampling, fits = threedim.tables(1, longer=True)
    assert [row["precision"] for row in calls.rows] == ["float32", "bfloat16", "bfloat16, compiled"]
    assert calls.rows[0]["times faster than float32"] == 1 and min(row["ms a pair"] for row in calls.rows) > 0
    assert [row["scenes together"] for row in sampling.rows] == ["1", "2"]
    assert min(row["views a minute"] for row in sampling.rows) > 0
    assert fits.rows[1]["steps"] == 2 * fits.rows[0]["steps"] and fits.rows[0]["PSNR, dB"] > 0


def test_pauses_between_jobs_of_the_janus_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TABLE, "task", dict(registry.TABLE["task"]))  # the job that waits is not left there
    monkeypatch.setattr(janus, "WORKERS", (1,))
    monkeypatch.setattr(janus, "installed", lambda module: False)
    made = janus.table(0.1)
    (row,) = made.rows
    assert (row["engine"], row["workers"], row["jobs"]) == ("processes", 1, janus.EACH)
    assert row["pause, ms"] > 0 and row["overhead, %"] == pytest.approx(row["pause, ms"] / 0.1 / 10)
    assert 0 < row["speed-up"] < 1 and made.notes[-1] == "Ray is not installed here."
