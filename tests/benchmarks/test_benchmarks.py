import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    clock,
    edits,
    export,
    export_asset,
    gaussians,
    gpu_networks,
    hashgrid,
    here,
    janus,
    mvadapter,
    mvdream,
    scene,
    step,
)
from benchmarks.clock import Case, paired
from benchmarks.export import METRICS
from benchmarks.export_asset import Job
from benchmarks.janus_objects import objects
from benchmarks.scene import Bench
from tests.support.ball_run import ball_run, register
from tests.support.task_server import prior_folder
from tests.support.tiny_mvadapter import adapter_base
from threedgen.config import load, registry
from threedgen.data.coloured_mesh import fit_to_ball
from threedgen.export.options import AssetConfig
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.matte import Matte
from threedgen.systems.generate.outputs import view_azimuths
from threedgen.toybox.world.toybox import render_orbit

TINY = [
    "threads=1", "march.samples=16", "field.width=8", "field.encoding.n_levels=2",
    "field.encoding.log2_hashmap_size=8", "occupancy.resolution=8", "occupancy.interval=2",
]  # fmt: skip


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


def test_tables_of_kernels(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaussians count pairs; the command prints the hash grid's table and writes JSON."""
    monkeypatch.setattr(gaussians, "SIZES", [(30, 2, 16)])
    torch_row, numba_row = gaussians.table(1).rows
    assert (torch_row["case"], numba_row["case"]) == ("torch", "numba") and torch_row["Gaussians"] == 30
    assert numba_row["pairs"] > 30 and numba_row["ns per pair"] == 1e6 * numba_row["median, ms"] / numba_row["pairs"]
    monkeypatch.setattr(hashgrid, "SIZES", [("tiny", {"n_levels": 2, "log2_hashmap_size": 6}, 50)])
    out = tmp_path / "new" / "record.json"
    assert command.main(["hashgrid", "--rounds", "1", "--out", str(out), "threads=1"]) == 0
    assert "| tiny" in capsys.readouterr().out
    record = json.loads(out.read_text())
    rows = record["tables"][0]["rows"]
    assert [row["case"] for row in rows] == ["torch", "numba"] and rows[1]["points"] == 50 and rows[1]["ratio"] > 0
    assert record["options"] == ["threads=1"] and record["machine"]["threads"]["torch"] == torch.get_num_threads()


def test_step_variants_compute_the_same_field_and_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "FIT_STEPS", 3)
    monkeypatch.setattr(scene, "FIT_SIZE", 12)
    bench = Bench([*TINY, f"prior.weights={prior_folder()}"])
    slow, fast = bench.system(*step.TWINS, *step.NO_SKIPPING), bench.system()
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert slow.occupancy is None and fast.occupancy is not None
    assert torch.allclose(slow.field.density(x), fast.field.density(x), rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(step, "Bench", lambda overrides, run: bench)
    rows = step.table(1, 8, [], None).rows
    assert [row["case"] for row in rows] == list(step.VARIANTS)
    assert rows[0]["ratio"] == 1 and all(row["min, ms"] > 0 and row["ratio"] > 0 for row in rows)


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


def test_mvadapter_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvadapter, "BASE", str(adapter_base()))
    original = mvadapter.measure

    def measure(case: str, steps: int, device: str) -> mvadapter.Measured:
        result = original(case, steps, device, 1)
        return result._replace(peak=max(1, result.peak))  # this process may have used more memory before

    monkeypatch.setattr(mvadapter, "run_in_process", measure)
    full, text, image = mvadapter.table(2, "cpu").rows
    assert full["ratio"] == full["peak ratio"] == 1 and full["trainable, M"] > 0
    assert 0 < text["trainable, M"] < image["trainable, M"] and text["median, s"] > 0


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
    assert (rows["made"]["held"], rows["made"]["verdict"]) == ("2 of 3", "FAIL") and table.notes[1].startswith("two: ")
    assert float(rows["silhouette"]["worst"]) > 0.8 and float(rows["outline"]["worst"]) > 0.5


@pytest.mark.parametrize("pair", [0, 1], ids=["accessory", "colour"])
@pytest.mark.parametrize("same", [True, False])
def test_only_the_kept_part_of_an_edit_counts(tmp_path: Path, monkeypatch, pair: int, same: bool) -> None:
    before, edit = edits.PAIRS[pair]
    table = load("quick-toybox", ["prompt=a dog"]).result.turntable
    elevation, fov = np.deg2rad([table.elevation, table.fov])
    objects = iter(
        [edits.toybox_pairs(before, replace(before, **edit), seed)[0][k] for k, seed in ((0, 0), (1, 3 * (not same)))]
    )

    def launch(config: str, out: Path, *overrides: str) -> None:
        distance = table.distance * np.tan(fov / 2)
        views = render_orbit(
            next(objects), view_azimuths(table), elevation, 96, fov=float(fov), relative_distance=distance
        )
        out.mkdir(parents=True)
        np.savez(out / "views.npz", views=np.round(255 * views.rgb).astype(np.uint8))

    monkeypatch.setattr(edits, "launch", launch)
    monkeypatch.setattr(edits, "FOLDER", tmp_path)
    row = edits.measure(before, edit, ["steps=1"], Matte.load(edits.MATTE))
    assert float(row["changed, Lab"]) > 15 and 3 < float(row["kept, % of pixels"]) < 95
    if same:
        assert float(row["kept, Lab"]) < 1 and float(row["outline IoU"]) > 0.95
    else:
        assert float(row["kept, Lab"]) > 3 and float(row["outline IoU"]) < 0.9


def test_janus_objects_have_their_number_of_fronts() -> None:
    angles = np.array([0, np.pi])
    c2w = orbit_array(np.full(2, 0.26), angles, np.full(2, 2.6))
    counts: Counter[tuple[str, int]] = Counter()
    for kind, name, fronts, mesh in objects():
        counts[kind, fronts] += 1
        assert np.linalg.norm(mesh.corners, axis=-1).max() < 1, name
        front, back = fit_to_ball(mesh).render(c2w, np.deg2rad(40), 32)
        changed = float((np.abs(front - back).max(-1) > 0.05).mean())  # share of pixels
        if fronts == 1:
            assert changed > 0.04, (kind, name)
        if fronts == 2:
            assert changed < 0.005, (kind, name)
    assert counts == {(kind, fronts): 10 for kind in ("other", "toybox") for fronts in (0, 1, 2)}
