"""A file of the user's adds a choice, as docs/plugins.md says: the code there is what is tested here."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.errors import refused
from tests.support.task_server import tiny_generate
from threedgen import cli
from threedgen.config import plugins, registry
from threedgen.run.metrics import read_summary

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


@pytest.fixture
def csd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plug-in of the page, in a folder that Python does not know; afterwards all is as before."""
    monkeypatch.setattr(registry, "TABLE", {kind: dict(names) for kind, names in registry.TABLE.items()})
    monkeypatch.setattr(sys, "path", [*sys.path])
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path / "csd.py"
    path.write_text(code)
    yield path
    sys.modules.pop("csd", None)


def test_its_options_are_in_the_help(csd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--plugin", str(csd), "--help", "distillation", "distillation.name=csd"]) == 0
    said = capsys.readouterr().out
    assert "distillation.strength = 40.0" in said and "by which the direction is multiplied" in said


def test_a_run_uses_it_and_goes_on_with_it(csd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, run, plugin = str(tiny_generate(tmp_path / "tiny")), str(tmp_path / "run"), ["--plugin", str(csd), "-q"]
    words = ["--config", tiny, "distillation.name=csd", "distillation.guidance_scale=9", "export.enabled=false"]
    assert cli.main([*plugin, *words, "distillation.strength=7", f"out={run}", "trainer.max_steps=3"]) == 0
    assert read_summary(Path(run))["status"] == "finished" and "strength: 7" in (Path(run) / "config.yaml").read_text()
    assert cli.main([*plugin, "--resume", run, "trainer.max_steps=4"]) == 0
    assert read_summary(Path(run))["steps"] == 4
    registry.TABLE["distillation"].pop("csd")
    assert cli.main(["-q", "--resume", run]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "distillation.name: " in error and "'csd'" in error and "sds, reconstruction, vsd" in error


def test_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refused("--plugin", "mine.py"):
        plugins.load("mine.py")
    assert cli.main(["--plugin", "mine.py", "--list"]) == 2


@pytest.mark.parametrize(
    ("content", "kind"), [("x = 1 / 0", "ZeroDivisionError"), ("import torhc", "ModuleNotFoundError")]
)
def test_errors_of_the_file_show_their_traceback(
    csd: Path, content: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(csd.parent)
    Path("mine.py").write_text(content)
    assert cli.main(["--plugin", "mine.py", "--list"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and 'mine.py", line 1' in error and content in error
    assert error.splitlines()[-1].startswith(f"{kind}: ")
