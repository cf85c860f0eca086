import csv
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.support.errors import full_disk, refused
from tests.support.toy_task import toy  # noqa: F401
from threedgen import config
from threedgen.config.errors import DiskFull, FileError
from threedgen.run import folder as runs
from threedgen.run import lock
from threedgen.run import metrics as ledger
from threedgen.run.disk import prepare, temporary_path, write_atomic, writing
from threedgen.run.lock import release


def loaded(*overrides: str) -> Any:
    return config.load("toy", list(overrides))


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "\x00\x1b[31m", "\ud800", "🐶🐶", "-rf /", "x" * 5000])
def test_slug_is_a_safe_folder_name_for_any_text(text: str) -> None:
    name = runs.slug(text)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 10 <= len(name) <= 69 and not name.startswith("-")
    assert name != runs.slug(text + " ")
    root = Path("outputs").resolve()
    assert (root / name).resolve().parent == root


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EACCES, FileError)]
)
def test_writing_names_the_folder_and_the_file(number: int, kind: type[Exception]) -> None:
    for file in ([], ["a.png"]):
        with refused(None, "run", *file, kind=kind), writing(Path("run")):
            raise OSError(number, "reason", *file)


def test_prepare_compares_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 200 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    prepare(tmp_path, megabytes=200)
    free -= 1
    with refused("out", tmp_path, "200 MB", kind=DiskFull):
        prepare(tmp_path, megabytes=200)


def test_open_run_gives_each_config_its_own_folder(toy: Path) -> None:  # noqa: F811
    first, resume = runs.open_run(loaded(), "toy")
    assert resume is None
    assert first.out == str(Path("outputs") / "toy" / runs.slug("a cat"))
    again, resume = runs.open_run(loaded(), "toy")
    assert again.out == first.out and resume == Path(first.out)
    second, resume = runs.open_run(loaded("seed=1"), "toy")
    assert second.out == f"{first.out}-2" and resume is None
    third, _ = runs.open_run(loaded("seed=2"), "toy")
    assert third.out == f"{first.out}-3"
    assert runs.open_run(loaded("seed=1", "checkpoint.seconds=1"), "toy")[0].out == second.out
    assert runs.open_run(loaded("trainer.max_steps=1"), "toy")[0].out == f"{first.out}-4"
    for name, folder in (("../toy: x", "toy-x"), ("../é " + "x" * 100, "x" * 60)):
        other, _ = runs.open_run(loaded("prompt=a dog"), name)
        assert Path(other.out).parent == Path("outputs") / folder


def test_other_data_gets_another_default_folder(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    first, _ = runs.open_run(loaded(), "toy")
    model = type(first)
    monkeypatch.setattr(model, "changeable_on_resume", ("seed",), raising=False)
    assert runs.open_run(loaded("seed=1"), "toy")[0].out == f"{first.out}-2"
    monkeypatch.setattr(model, "shares_default_folder", True, raising=False)
    assert runs.open_run(loaded("seed=1"), "toy")[0].out == first.out
    monkeypatch.setattr(model, "changeable_on_resume", (), raising=False)
    monkeypatch.setattr(model, "movable_inputs", ("seed",), raising=False)
    (Path(first.out) / "mesh.glb").touch()
    assert runs.open_run(loaded("seed=2"), "toy")[0].out != first.out
    with refused(None, "another config"):
        runs.open_run(loaded("seed=2", f"out={first.out}"), "toy")
    assert runs.reopen(first.out, ["seed=2"])[0].seed == 2


FOREIGN: dict[str, Callable[[Path], object]] = {
    "other file": lambda folder: (folder / "mesh.glb").write_text("x"),
    "notes": lambda folder: (folder / "config.yaml").write_text("my own notes\n"),
    "own config": lambda folder: (folder / "config.yaml").write_text("# mine\ntask: toy\nprompt: a cat\nseed: 3\n"),
    "broken link": lambda folder: (folder / "config.yaml").symlink_to("nowhere"),
}
"""Content of a folder that belongs to something else."""
if hasattr(os, "mkfifo"):
    FOREIGN["pipe"] = lambda folder: os.mkfifo(folder / "config.yaml")


@pytest.mark.parametrize("content", FOREIGN)
def test_open_run_refuses_a_folder_of_something_else(toy: Path, content: str) -> None:  # noqa: F811
    folder = Path("other")
    folder.mkdir()
    FOREIGN[content](folder)
    (file,) = folder.iterdir()
    before = file.lstat().st_mtime_ns
    for function in (runs.choose_folder, runs.open_run):
        with refused(None, "other"):
            function(loaded("out=other"), "toy")
    assert list(folder.iterdir()) == [file] and file.lstat().st_mtime_ns == before


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "{"), ("notes.txt", "x")])
def test_open_run_leaves_a_default_folder_of_something_else(toy: Path, name: str, content: str) -> None:  # noqa: F811
    first, _ = runs.choose_folder(loaded(), "toy")
    first.mkdir(parents=True)
    (first / name).write_text(content)
    assert runs.open_run(loaded(), "toy")[0].out == f"{first}-2"
    assert (first / name).read_text() == content


def test_open_run_refuses_another_config_except_for_neutral_keys(toy: Path) -> None:  # noqa: F811
    runs.open_run(loaded("out=dog"), "toy")
    Path("dog", "metrics.jsonl").write_text("{}\n")
    for neutral in ("trainer.max_steps=7", "checkpoint.seconds=1", "threads=1", "trainer.devices=2"):
        assert runs.open_run(loaded("out=dog", neutral), "toy")[1] == Path("dog")
    with refused(None, "dog", "seed: 0 -> 1", "prior.guidance_scale: 7.5 -> {0: 2.0}"):
        runs.open_run(loaded("out=dog", "seed=1", "prior.guidance_scale={0: 2}"), "toy")


def test_open_run_reuses_the_folder_of_a_run_without_results(toy: Path) -> None:  # noqa: F811
    runs.open_run(loaded("out=dog"), "toy")
    Path("dog", "stages", "coarse").mkdir(parents=True)
    Path("dog", "stages", "coarse", runs.CONFIG).write_text("task: toy\n")
    Path("dog", runs.PRESET).write_text('{"preset": null}')
    for name in (".DS_Store", "._config.yaml", "Thumbs.db", "desktop.ini"):
        Path("dog", name).touch()
    release(Path("dog"))
    reused, resume = runs.open_run(loaded("out=dog", "seed=1"), "toy")
    assert reused.out == "dog" and resume is None and not Path("dog", runs.PRESET).exists()
    assert config.load("dog/config.yaml").seed == 1
    first = str(runs.open_run(loaded(), "toy")[0].out)
    assert runs.open_run(loaded("seed=1"), "toy")[0].out == f"{first}-2", "the first one is locked"
    release(Path(first))
    assert runs.open_run(loaded("seed=2"), "toy")[0].out == first
    Path(first, "text.safetensors").write_bytes(b"x")
    release(Path(first))
    assert runs.open_run(loaded("seed=3"), "toy")[0].out == f"{first}-3"


def test_open_run_refuses_folders_that_cannot_be_written(toy: Path) -> None:  # noqa: F811
    Path("file").write_text("")
    for out in ("file", "file/below", "", "x" * 300, "~nobody-has-this-name/x", "a\0b"):
        with refused("out"):
            runs.open_run(loaded(f"out={out}"), "toy")


def test_reopen_finds_a_moved_run_and_leaves_its_config_if_refused(toy: Path, monkeypatch) -> None:  # noqa: F811
    runs.open_run(loaded("out=dog", "seed=5"), "toy\nconfig")
    assert "dog" not in Path("dog/config.yaml").read_text()
    shutil.move("dog", "moved")
    reopened, folder = runs.reopen("moved", ["trainer.max_steps=9"])
    assert runs.stored_config_name(Path("moved/config.yaml").read_text()) == "toy config"
    assert (reopened.seed, reopened.out, reopened.trainer.max_steps) == (5, "moved", 9)
    assert runs.reopen("moved/config.yaml", [])[0].trainer.max_steps == 9
    assert runs.reopen("moved", ["out=./moved"])[0].out == "moved"
    with refused("out", "elsewhere"):
        runs.reopen("moved", ["out=elsewhere"])
    with refused(None, "seed: 5 -> 6"):
        runs.reopen(folder, ["seed=6"])
    for wrong in ("nowhere", "", "a\0"):
        with refused("--resume"):
            runs.reopen(wrong, [])
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    before = Path("moved/config.yaml").read_bytes()
    with refused("trainer.accelerator"):
        runs.reopen("moved", ["trainer.accelerator=mps", "trainer.max_steps=19"])
    assert Path("moved/config.yaml").read_bytes() == before


def test_open_run_keeps_the_config_of_a_longer_or_finished_run(toy: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    runs.open_run(loaded("out=dog", "trainer.max_steps=10"), "toy")
    assert runs.open_run(loaded("out=dog", "trainer.max_steps=12"), "toy")[1] and not caplog.text, "no steps done"
    Path("dog/summary.json").write_text('{"steps": 10}')
    for asked, stored, change in ((6, 12, ""), (10, 10, "12 -> 10"), (14, 14, "10 -> 14"), (14, 14, "")):
        caplog.clear()
        assert runs.open_run(loaded("out=dog", f"trainer.max_steps={asked}"), "toy")[1] == Path("dog")
        assert config.load("dog/config.yaml").trainer.max_steps == stored
        assert len(caplog.records) == bool(change) and change in caplog.text
    assert runs.reopen("dog", ["trainer.max_steps=20"])[0].trainer.max_steps == 20
    assert "14 -> 20" in caplog.text
    runs.open_run(loaded("out=cat", "trainer.max_steps=10"), "toy")
    for asked, status, stored in ((2, "interrupted", 2), (3, "finished", 2)):
        Path("cat/summary.json").write_text(json.dumps({"steps": 10, "status": status}))
        runs.open_run(loaded("out=cat", "trainer.max_steps=10", f"threads={asked}"), "toy")
        assert config.load("cat/config.yaml").threads == stored


@pytest.mark.parametrize("call", ["os.fsync", "builtins.open"])
def test_write_atomic_leaves_the_old_file_after_an_error(tmp_path: Path, monkeypatch, call: str) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old é")
    monkeypatch.setattr(call, full_disk)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == "old é".encode() and os.listdir(tmp_path) == ["file.json"]


def test_open_run_removes_temporary_files_of_killed_processes(toy: Path) -> None:  # noqa: F811
    """Only such files, and not those of a run inside the run, which may be active."""
    temporary = [
        "last.ckpt.77.threedgen.tmp",
        "deep/er/views.npz.1.threedgen.tmp",
        "model.77.threedgen.tmp/unet/config.json",
    ]
    others = ["notes.77.tmp", "deep/thesis.threedgen.tmp", "stages/one/config.yaml", "stages/one/x.7.threedgen.tmp"]
    runs.open_run(loaded("out=run"), "toy")
    release(Path("run"))
    for name in (*temporary, *others):
        path = Path("run") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    runs.open_run(loaded("out=run"), "toy")
    assert [name for name in temporary if (Path("run") / name).exists()] == []
    assert not Path("run/model.77.threedgen.tmp").exists() and all((Path("run") / name).exists() for name in others)
    assert temporary_path(Path("run/last.ckpt")).name == f"last.ckpt.{os.getpid()}.threedgen.tmp"


def test_temporary_files_of_running_processes_are_kept_without_file_locks(toy: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(lock, "fcntl", None)  # as on Windows
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid == 78)
    runs.open_run(loaded("out=run"), "toy")
    for number in (77, 78):
        Path(f"run/last.ckpt.{number}.threedgen.tmp").write_text("half")
    runs.open_run(loaded("out=run"), "toy")
    assert [path.name for path in Path("run").glob("*.tmp")] == ["last.ckpt.78.threedgen.tmp"]


class _Tensor:
    def __float__(self) -> float:
        return 2.5


def test_metrics_drop_invalid_lines_and_later_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = ledger.Metrics(tmp_path)
    for step in range(1, 6):
        metrics.log(step, {"loss": _Tensor(), "part": step / 2} | ({"late": math.nan} if step > 2 else {}))
    with open(metrics.path, "a") as file:
        file.write('{"step": 2, "loss": NaN}\n{"step": true}\n{"step": 2, "loss": 1e999}\n{"step": 6, "lo')
    resumed = ledger.Metrics(tmp_path, step=3)
    resumed.log(4, {"loss": 1.0})
    assert [line["step"] for line in ledger.read_metrics(tmp_path)] == [1, 2, 3, 4]
    with open(resumed.write_csv(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "part", "late"]
    assert rows[0]["loss"] == "2.5" and rows[3] == {"step": "4", "loss": "1.0", "part": "", "late": ""}
    assert ledger.read_metrics(tmp_path / "none") == []
    metrics = ledger.Metrics(tmp_path / "missing")  # cannot be written: one warning
    for step in (1, 2):
        metrics.log(step, {"loss": 1})
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(metrics.path) in caplog.text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_peak_memory_excludes_the_parent_process() -> None:
    start = """
import subprocess, sys
data = b"x" * (600 << 20)
print(subprocess.run([sys.executable, "-c", sys.argv[1]], check=True, capture_output=True, text=True).stdout)
"""
    child = "from threedgen.run.metrics import peak_memory as peak; a = peak(); b'x' * (100 << 20); print(a, peak())"
    command, root = [sys.executable, "-c", start, child], Path(__file__).parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    before, after = (float(figure) for figure in done.stdout.split())
    assert before < 400 and 90 < after - before < 200
