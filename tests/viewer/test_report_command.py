"""Task `report`: rewrites the page of a run, reports mistakes, and needs no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.errors import refused
from tests.support.example_run import CONFIG, example
from threedgen import cli
from threedgen.config import yaml_text
from threedgen.viewer import page as pages
from threedgen.viewer.report import PAGE, SCRIPTS, write_report

ROOT = Path(__file__).parents[2]


def test_report_rewrites_only_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["--config", "report.yaml", f"run={run}"]) == 0
    assert capsys.readouterr().out == f"{run / PAGE}\n"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.pop(run / PAGE).startswith(b"<!doctype html>") and after == before


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (None, ["run: ", "config.yaml"]),
        ({}, ["run: ", "config.yaml"]),
        ({"config.yaml": "task: sample\nprompt: x\n"}, ["generate", "'sample'"]),
        ({"config.yaml": "task: [\n"}, ["config.yaml"]),
        ({"config.yaml": "[]"}, ["config.yaml", "[]"]),
        ({"config.yaml": "task: generate", "summary.json": "{"}, ["summary.json", "--resume"]),
    ],
)
def test_folder_without_a_valid_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str] | None, parts: list[str]
) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    assert cli.main(["--config", "report", f"run={run}"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and all(part in output.err for part in parts), output.err
    assert not (run / PAGE).exists()


def test_missing_run_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", "report"]) == 2
    assert capsys.readouterr().err.startswith("run: ")


def test_full_disk_keeps_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = example(tmp_path / "run")
    before = write_report(run).read_bytes()
    (run / "mesh.glb").unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["--config", "report", f"run={run}"]) == 3
    error = capsys.readouterr().err
    assert PAGE in error and os.strerror(28) in error
    assert (run / PAGE).read_bytes() == before and not list(run.glob("*.tmp"))


def test_pages_need_no_torch(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    code = "import sys; from threedgen import cli; code = cli.main(); print('torch' in sys.modules); sys.exit(code)"
    for args in (["--config", "report", f"run={run}"], ["--config", "gallery", f"runs={tmp_path}"]):
        done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr


def test_scripts_and_styles_contain_no_closing_tag() -> None:
    for name in (*SCRIPTS, "gallery.js", "page.css"):
        text = (pages.ASSETS / name).read_text(encoding="utf-8")
        assert "</" not in text and text.isascii(), name
        assert len(text.splitlines()) <= 300, name


def test_write_report_refuses_other_folders(tmp_path: Path) -> None:
    with refused(None, tmp_path / "config.yaml"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml_text.write(CONFIG | {"task": "sample"}))
    with refused(None, tmp_path, "sample", "generate"):
        write_report(tmp_path)
