"""The task "report": the page again, what is wrong said in a sentence, and what pages must not need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.example_run import CONFIG, example
from threedgen import cli
from threedgen.config import ConfigError, yaml_text
from threedgen.viewer import page as pages
from threedgen.viewer.report import PAGE, SCRIPTS, write_report

ROOT = Path(__file__).parents[2]


def test_the_command_makes_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["--config", "report.yaml", f"run={run}"]) == 0
    assert capsys.readouterr().out == f"{run / PAGE}\n"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.pop(run / PAGE).startswith(b"<!doctype html>") and after == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run: None, ("run: should be the folder of a run", "config.yaml", "run")),
        (lambda run: run.mkdir(), ("run: should be the folder of a run", "config.yaml")),
        (lambda run: write(run, "task: sample\nprompt: x\n"), ("task generate", "sample")),
        (lambda run: write(run, "task: [\n"), ("config.yaml",)),
        (lambda run: write(run, "[]"), ("config.yaml", "is not the config of a run (it holds []")),
        (lambda run: write(run, "task: generate", "{"), ("summary.json", "damaged", "--resume")),
    ],
)
def test_a_folder_that_is_no_run_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, said: tuple[str, ...]
) -> None:
    make(tmp_path / "run")
    assert cli.main(["--config", "report", f"run={tmp_path / 'run'}"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and all(part in output.err for part in said), output.err
    assert not (tmp_path / "run" / PAGE).exists()


def write(run: Path, config: str, summary: str = "") -> None:
    run.mkdir()
    (run / "config.yaml").write_text(config)
    if summary:
        (run / "summary.json").write_text(summary)


def test_without_a_run_it_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", "report"]) == 2
    assert capsys.readouterr().err.startswith("run: is missing; say which, such as run=outputs/")


def test_a_full_disk_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = example(tmp_path / "run")
    before = write_report(run).read_bytes()
    (run / "mesh.glb").unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["--config", "report", f"run={run}"]) == 2
    assert re.search(r"report.html could not be written \(No space left.*run the same command", capsys.readouterr().err)
    assert (run / PAGE).read_bytes() == before and not list(run.glob("*.tmp"))


def test_pages_need_no_torch(tmp_path: Path) -> None:
    """Looking at a run answers at once."""
    run = example(tmp_path / "run")
    code = "import sys; from threedgen import cli; code = cli.main(); print('torch' in sys.modules); sys.exit(code)"
    for words in (["--config", "report", f"run={run}"], ["--config", "gallery", f"runs={tmp_path}"]):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr


def test_scripts_and_styles_do_not_end_early() -> None:
    for name in (*SCRIPTS, "gallery.js", "page.css"):
        text = (pages.ASSETS / name).read_text(encoding="utf-8")
        assert "</" not in text and text.isascii(), name
        assert len(text.splitlines()) <= 300, name


def test_a_broken_config_is_an_error_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml_text.write(CONFIG | {"task": "sample"}))
    with pytest.raises(ConfigError, match="it is of 'sample'"):
        write_report(tmp_path)
