"""The task "sample": pictures of a prompt, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import command
from tests.support.task_server import prior_folder, write_config
from threedgen.config.errors import DiskFull
from threedgen.systems.sample import task as sample

SAMPLE = {"task": "sample", "threads": 1, "n_view": 2, "steps": 2}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with sample.yaml in it."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "sample.yaml", SAMPLE, prior={"weights": str(prior_folder()), "dtype": "fp32"})
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    return command.ask(capsys, "--config", "sample.yaml", *words)


def test_a_row_of_views_for_each_sample(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "prompt=a red dog", "samples=3", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "views.png"))
    with Image.open("run/views.png") as picture:
        assert picture.size == (2 * 16 + 3 * 2, 3 * 16 + 4 * 2)
        rows = [picture.crop((2, 2 + 18 * k, 36, 18 + 18 * k)).tobytes() for k in range(3)]
    assert len(set(rows)) == 3
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["task"] == "sample" and summary["notes"] == []


def test_the_same_seed_the_same_picture(capsys: pytest.CaptureFixture[str]) -> None:
    pictures = {}
    for name, words in {
        "one": ["seed=1"],
        "again": ["seed=1"],
        "other": ["seed=2"],
        "negative": ["seed=1", "negative_prompt=a green cat"],
        "turned": ["seed=1", "azimuth=90"],
    }.items():
        assert ask(capsys, "prompt=a red dog", f"out={name}", *words)[0] == 0
        pictures[name] = Path(name, "views.png").read_bytes()
    assert pictures["one"] == pictures["again"]
    assert len(set(pictures.values())) == 4


def test_a_suffix_is_part_of_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "prompt=a red dog", "suffix=, 3d asset", "out=suffix")[0] == 0
    assert ask(capsys, "prompt=a red dog, 3d asset", "suffix=, 3d asset", "out=said")[0] == 0
    assert ask(capsys, "prompt=a red dog", "out=plain")[0] == 0
    seen = {name: Path(name, "views.png").read_bytes() for name in ("suffix", "said", "plain")}
    assert seen["suffix"] == seen["said"] != seen["plain"]


def test_one_picture_of_the_two_dimensional_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "prompt=a red dog", "n_view=0", "out=run", "-q")[:2] == (0, f"{Path('run', 'views.png')}\n")
    with Image.open("run/views.png") as picture:
        assert picture.size == (16 + 2 * 2,) * 2


def test_unknown_words_are_in_the_summary(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert ask(capsys, "prompt=a red dgo", "prompt_check=off", "out=run", "-q")[0] == 0
    (note,) = json.loads(Path("run/summary.json").read_text())["notes"]
    assert note in caplog.text and "'dgo'" in note and "dog" in note


def test_a_picture_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "write_png", full)
    code, _, err = ask(capsys, "prompt=a red dog", "out=run")
    assert code == DiskFull.exit_code and err.count("\n") == 1 and "No space left on device" in err
