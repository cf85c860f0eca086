"""Choice of Numba's cache folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from threedgen.run import numba_cache
from threedgen.run.numba_cache import VARIABLE

KERNEL = "from numba import njit\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n"
CODE = """
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
    """Package whose __pycache__ cannot be written, even by root."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "kernel.py").write_text(KERNEL)
    (package / "__pycache__").write_text("")
    return package


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of a user without a home folder, with temporary files in `tmp`."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    variables = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path / "tmp"), VARIABLE: ""}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("no_home")
def test_kernels_compile_without_a_cache_folder(package: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-B", "-c", CODE, str(package)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (cache,) = (tmp_path / "tmp").glob("threedgen-numba-*")
    assert list(cache.rglob("kernel.double-*.nbc")) and str(cache) in done.stderr


@pytest.mark.usefixtures("no_home")
def test_choose_takes_the_first_writable_folder(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(package: Path) -> str:
        numba_cache.choose(package)
        folder, os.environ[VARIABLE] = os.environ[VARIABLE], ""
        return folder

    temporary = choose(package)
    assert Path(temporary).parent == tmp_path / "tmp"
    assert Path(temporary).stat().st_mode & 0o777 == 0o700  # its files are executed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert choose(package) == str(tmp_path / "cache/threedgen/numba")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not valid
    assert Path(choose(package)).parent == tmp_path / "tmp" and not Path("relative").exists()
    (package / "__pycache__").unlink()
    assert choose(package) == "", "Numba's default"
    monkeypatch.setenv(VARIABLE, "/dev/null/wrong")
    (package / "__pycache__").rmdir()
    (package / "__pycache__").write_text("")
    assert Path(choose(package)).parent == tmp_path / "tmp"
