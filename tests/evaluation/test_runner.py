"""The runner of evaluations, kept JSON, and tables of figures."""

import json
import signal
from pathlib import Path

import pytest

from threedgen.config.sections import RunConfig
from threedgen.evaluation.metrics.figures import Share, estimate
from threedgen.evaluation.report import figure_table, write_report
from threedgen.evaluation.runner import Evaluation, evaluation_task, kept_json
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
        return kept_json(self.folder / f"{item}.json", lambda: {"square": square(item)})["square"]

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


def test_ctrl_c_stops_after_the_item_and_the_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stop_at, done in ((2, 2), (3, 3)):
        monkeypatch.setattr(Squares, "stop_at", stop_at)
        assert run(config(tmp_path), quiet=True) == 130
        assert not (tmp_path / "report.json").exists() and len(list(tmp_path.glob("?.json"))) == done
    monkeypatch.setattr(Squares, "stop_at", None)
    assert run(config(tmp_path), quiet=True) == 0 and (tmp_path / "report.json").exists()


def test_workers_measure_by_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threedgen.run.workers.LocalProcess", Worker)
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

    assert kept_json(path, make, seed=1) == kept_json(path, make, seed=1) == {"value": 0, "seed": 1}
    assert kept_json(path, make, seed=2)["value"] == 1
    path.write_text("{")
    assert kept_json(path, make, seed=2)["value"] == 2


def test_figure_table_formats_shares_estimates_and_numbers() -> None:
    rows = {
        "ours": {"psnr": estimate(20.0, (19.0, 21.0)), "won": 3, "fid": 1.5, "janus": Share(1, 4).plain()},
        "theirs": {"psnr": estimate(None, None), "won": 0},
    }
    text = figure_table("row", rows, {"psnr": "PSNR", "won": "won", "fid": "FID", "janus": "Janus", "ssim": "SSIM"})
    assert text.splitlines() == [
        "| row | PSNR | won | FID | Janus |",
        "|---|---|---|---|---|",
        "| ours | 20.000 (19.000 - 21.000) | 3 | 1.500 | 25.0 % (1/4; 4.6 - 69.9 %) |",
        "| theirs | - | 0 | - | - |",
    ]
