import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from threedgen.config import command as place
from threedgen.config.command import command, install


def test_a_checkout_has_launch_and_an_installation_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command() == "python launch.py" and command("--resume", "RUN") == "python launch.py --resume RUN"
    assert install("viser") == 'pip install -e ".[viser]"'
    monkeypatch.setattr(place, "ROOT", tmp_path)
    assert command() == "threedgen" and command("--resume", "RUN") == "threedgen --resume RUN"
    assert install("viser") == 'pip install "threedgen[viser]"'


def test_a_folder_of_any_name_arrives_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows it is in double quotes."""
    for folder in ("a run", "it's", "$HOME", "ü;b"):
        words = ["--config", "export", f"run={folder}"]
        assert shlex.split(command(*words))[2:] == words
    monkeypatch.setattr(place, "os", SimpleNamespace(name="nt"))
    assert command("--resume", r"outputs\dog").endswith(r" --resume outputs\dog")
    assert command("--resume", r"my runs\dog").endswith(r' --resume "my runs\dog"')
