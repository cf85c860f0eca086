import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import export, export_asset, gaussians, hashgrid, here
from benchmarks.export import METRICS
from benchmarks.export_asset import Job
from tests.support.ball_run import ball_run, register
from threedgen.export.options import AssetConfig


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
