"""Kernels find a place for what they compile: in a read-only installation, and without a home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from threedgen.run import numba_cache
from threedgen.run.numba_cache import VARIABLE

KERNEL = "from numba import njit\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n"
WORDS = """
import sys
from pathlib import Path
from threedgen.run.numba_cache import choose
choose(Path(sys.argv[1]))
sys.path.insert(0, sys.argv[1])
import kernel
assert kernel.double(4) == 8
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package beside whose sources nothing can be written, by whomever."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "kernel.py").write_text(KERNEL)
    (package / "__pycache__").write_text("")
    return package


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a user without a home, whose temporary files go to `tmp`."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(VARIABLE, "")  # so that what is chosen is forgotten after the test
    variables = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path / "tmp")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def test_kernels_compile_without_any_place_of_their_own(package: Path, nobody: dict[str, str], tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-B", "-c", WORDS, str(package)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (kept,) = (tmp_path / "tmp").glob("threedgen-numba-*")
    assert list(kept.rglob("kernel.double-*.nbc")) and f"kernels are kept in {kept}" in done.stderr


def test_the_first_place_that_can_be_written(
    package: Path, nobody: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(package: Path) -> str:
        numba_cache.choose(package)
        found, os.environ[VARIABLE] = os.environ[VARIABLE], ""
        return found

    temporary = chosen(package)
    assert Path(temporary).parent == tmp_path / "tmp"
    assert Path(temporary).stat().st_mode & 0o777 == 0o700  # what lies in it is executed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert chosen(package) == str(tmp_path / "cache/threedgen/numba")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # such a variable is not valid
    assert Path(chosen(package)).parent == tmp_path / "tmp" and not Path("relative").exists()
    (package / "__pycache__").unlink()
    assert chosen(package) == ""  # numba's own way
    monkeypatch.setenv(VARIABLE, "/dev/null/wrong")
    (package / "__pycache__").rmdir()
    (package / "__pycache__").write_text("")
    assert Path(chosen(package)).parent == tmp_path / "tmp"
