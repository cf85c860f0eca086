"""For all tests: repeatable property tests, no wait for the disk, a GPU or a browser only where there is one."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import disk, kept_folder
from tests.support.browser import chromium, launched  # noqa: F401  fixtures
from tests.support.marks import has_gpu

settings.register_profile("ci", deadline=None, derandomize=True, database=None)  # busy machines are slow
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile("ci")


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that prints nothing but an error, one line with these parts, and ends with code 2; its stderr."""
    from threedgen import cli

    def run(words: list[str], *parts: str) -> str:
        capsys.readouterr()
        code = cli.main(words)
        output = capsys.readouterr()
        assert code == 2 and not output.out and output.err.count("\n") == 1, output.err
        assert all(part in output.err for part in parts), output.err
        return output.err

    return run


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty cache of a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def one_thread_after_each_test() -> Iterator[None]:
    """Undo `set_threads` of runs within this process, which the tests after them would inherit: with a worker for each
    core, two threads each make them ten times slower."""
    yield
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    disk.never_wait()
    if not is_worker(config):
        kept_folder.start_session()
    if not has_gpu():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by any library


def pytest_unconfigure(config: pytest.Config) -> None:
    if not is_worker(config):
        kept_folder.end_session()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
