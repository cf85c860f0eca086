"""A file of the user's adds a choice, as docs/plugins.md says: the code there is what is tested here."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.task_server import tiny_generate
from threedgen import cli
from threedgen.config import registry
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
    assert "no distillation has this name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--plugin: there is no such file (got 'mine.py')"),
        ("x = 1 / 0", "--plugin: mine.py: ZeroDivisionError: 'division by zero'"),
        ("import torhc", "--plugin: mine.py: ModuleNotFoundError: \"No module named 'torhc'\""),
    ],
)
def test_a_file_that_cannot_be_imported(
    csd: Path, content: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(csd.parent)
    if content is not None:
        Path("mine.py").write_text(content)
    assert cli.main(["--plugin", "mine.py", "--list"]) == 2
    assert capsys.readouterr().err.strip() == said
