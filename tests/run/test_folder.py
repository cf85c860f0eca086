"""Run folders: any prompt is a safe name, files are whole or absent, another run's folder is never taken."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.toy_task import toy  # noqa: F401
from threedgen import config
from threedgen.config import ConfigError
from threedgen.run import folder as runs
from threedgen.run import metrics as ledger
from threedgen.run.disk import prepare, prepared, unfinished, write_atomic, writing
from threedgen.run.lock import release


def loaded(*overrides: str) -> Any:
    return config.load("toy", list(overrides))


@given(st.text(max_size=100))
@example("../../etc/passwd")
@example("\x00\x1b[31m")
@example("\ud800")
@example("🐶🐶")
@example(".hidden")
@example("-rf /")
@example("CON")
@example("x" * 5000)
def test_any_text_makes_a_safe_folder_name(text: str) -> None:
    name = runs.slug(text)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 10 <= len(name) <= 69 and not name.startswith("-")
    assert name != runs.slug(text + " ")
    root = Path("outputs").resolve()
    assert (root / name).resolve().parent == root


def test_slug_keeps_the_words() -> None:
    assert runs.slug("A blue Dog, très chic!").rsplit("-", 1)[0] == "a-blue-dog-tres-chic"
    assert runs.slug("").startswith("prompt-")


def test_the_name_of_a_config_is_cut_and_cleaned(toy: Path) -> None:  # noqa: F811
    made, _ = runs.begin(loaded(), "../é " + "x" * 100)
    assert Path(made.out).parent == Path("outputs") / ("x" * 60)


@pytest.mark.parametrize("named, said", [(("a.png",), "full, a.png"), ((), "full")])
def test_the_file_that_does_not_fit_is_named(named: tuple[str, ...], said: str) -> None:
    with (
        pytest.raises(ConfigError, match=rf"run could not be written \({said}\): make room"),
        writing(Path("run")),
    ):
        raise OSError(errno.ENOSPC, "full", *named)


def test_just_enough_room_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 200 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    prepare(tmp_path, megabytes=200)
    free -= 1
    with pytest.raises(ConfigError, match="has 200 MB of free disk and the run needs 200"):
        prepare(tmp_path, megabytes=200)


def test_folders_that_were_made_for_nothing_are_taken_away(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), prepared(tmp_path / "there/new/deep", 0):
        assert (tmp_path / "there/new/deep").is_dir()
        raise KeyError
    assert not list((tmp_path / "there").iterdir())
    with pytest.raises(ConfigError, match="free disk"), prepared(tmp_path / "new", 1e12):
        raise AssertionError
    assert not (tmp_path / "new").exists()
    with pytest.raises(KeyError), prepared(tmp_path / "a/b", 0):
        (tmp_path / "a/kept").write_text("")
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_file_that_cannot_even_be_begun_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no inode is left")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="no inode is left"):
        write_atomic(tmp_path / "a.txt", "a")


def test_the_same_config_gets_the_same_folder_and_another_a_new_one(toy: Path) -> None:  # noqa: F811
    first, resume = runs.begin(loaded(), "toy")
    assert resume is None
    assert first.out == str(Path("outputs") / "toy" / runs.slug("a cat"))
    again, resume = runs.begin(loaded(), "toy")
    assert again.out == first.out and resume == Path(first.out)
    second, resume = runs.begin(loaded("seed=1"), "toy")
    assert second.out == f"{first.out}-2" and resume is None
    third, _ = runs.begin(loaded("seed=2"), "toy")
    assert third.out == f"{first.out}-3"
    assert runs.begin(loaded("seed=1", "checkpoint.seconds=1"), "toy")[0].out == second.out
    assert runs.begin(loaded("trainer.max_steps=1"), "toy")[0].out == f"{first.out}-4"
    other, _ = runs.begin(loaded("prompt=a dog"), "../toy: x")
    assert Path(other.out).parent == Path("outputs") / "toy-x"


def test_a_damaged_config_is_not_overwritten(toy: Path) -> None:  # noqa: F811
    first, _ = runs.begin(loaded(), "toy")
    damaged = Path(first.out) / "config.yaml"
    damaged.write_text("{")
    assert runs.begin(loaded(), "toy")[0].out == f"{first.out}-2"
    assert damaged.read_text() == "{"


@pytest.mark.parametrize("content", ["- a list\n", "my own notes\n", "", "3\n"])
def test_a_config_of_something_else_is_refused_and_kept(toy: Path, content: str) -> None:  # noqa: F811
    mine = Path("mine/config.yaml")
    mine.parent.mkdir()
    mine.write_text(content)
    with pytest.raises(ConfigError, match="not the config of a run"):
        runs.begin(loaded("out=mine"), "toy")
    assert mine.read_text() == content and len(list(mine.parent.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_file_is_neither_waited_for_nor_replaced(toy: Path) -> None:  # noqa: F811
    place = Path("mine")
    place.mkdir()
    os.mkfifo(place / "config.yaml")
    os.mkfifo(place / "metrics.jsonl")
    os.mkfifo(place / "summary.json")
    with pytest.raises(ConfigError, match="no ordinary file"):
        runs.begin(loaded("out=mine"), "toy")
    with pytest.raises(ConfigError, match="no ordinary file"):
        ledger.Metrics(place, 3)
    assert ledger.read_summary(place) == {}
    (place / "config.yaml").unlink()
    (place / "config.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        runs.begin(loaded("out=mine"), "toy")


def test_lines_of_metrics_that_are_not_ours_are_left_out(tmp_path: Path) -> None:
    odd = ['{"step": 2, "loss": NaN}', '{"step": true}', '{"step": 3, "loss": 1e999}', '{"step": ' + "9" * 30 + "}"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(['{"step": 1, "loss": 2.0}', *odd, '{"step": 4}', ""]))
    ledger.Metrics(tmp_path, step=10)
    assert [line["step"] for line in ledger.read_metrics(tmp_path)] == [1, 4]


def test_an_explicit_folder_refuses_another_config_but_for_harmless_keys(toy: Path) -> None:  # noqa: F811
    runs.begin(loaded("out=dog"), "toy")
    Path("dog", "metrics.jsonl").write_text("{}\n")
    for harmless in (
        "trainer.max_steps=7",
        "checkpoint.seconds=1",
        "trainer.log_every_n_steps=3",
        "threads=1",
    ):
        assert runs.begin(loaded("out=dog", harmless), "toy")[1] == Path("dog")
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1; prior.guidance_scale: 7.5 -> \{0: 2.0\}"):
        runs.begin(loaded("out=dog", "seed=1", "prior.guidance_scale={0: 2}"), "toy")
    with pytest.raises(ConfigError, match="prompt: 'a cat' -> 'a cow'"):
        runs.begin(loaded("out=dog", "prompt=a cow"), "toy")


def test_another_choice_is_one_difference_and_so_is_a_schedule() -> None:
    levels = {"min_step_percent": {"0%": 0.98, "80%": 0.02}, "recon_loss": True}
    old = {"distillation": {"name": "reconstruction", **levels}, "field": {"name": "ngp", "encoding": {"name": "a"}}}
    new = {"distillation": {"name": "sds", "grad_clip": 1.0}, "field": {"name": "ngp", "encoding": {"name": "b"}}}
    assert runs.differences(old, new) == [
        "distillation.name: 'reconstruction' -> 'sds', and 3 more of its section",
        "field.encoding.name: 'a' -> 'b'",
    ]
    assert runs.differences(old, old | {"field": {"name": "sdf", "encoding": {"name": "b"}}}) == [
        "field.name: 'ngp' -> 'sdf', and 1 more of its section"
    ]
    changed = {"distillation": old["distillation"] | {"min_step_percent": 0.02}, "field": old["field"]}
    assert runs.differences(old, changed) == ["distillation.min_step_percent: {'0%': 0.98, '80%': 0.02} -> 0.02"]


def test_a_run_that_left_no_work_gives_way(toy: Path) -> None:  # noqa: F811
    """It failed before it began: the corrected command takes its folder, with `out` and without."""
    runs.begin(loaded("out=dog"), "toy")
    Path("dog", "stages", "coarse").mkdir(parents=True)
    Path("dog", "stages", "coarse", runs.CONFIG).write_text("task: toy\n")
    release(Path("dog"))
    taken, resume = runs.begin(loaded("out=dog", "seed=1"), "toy")
    assert taken.out == "dog" and resume is None, "it is a new run"
    assert config.load("dog/config.yaml").seed == 1
    first = str(runs.begin(loaded(), "toy")[0].out)
    assert runs.begin(loaded("seed=1"), "toy")[0].out == f"{first}-2", "the first is still at it"
    release(Path(first))
    assert runs.begin(loaded("seed=2"), "toy")[0].out == first
    Path(first, "text.safetensors").write_bytes(b"x")
    release(Path(first))
    assert runs.begin(loaded("seed=3"), "toy")[0].out == f"{first}-3"


def test_places_that_cannot_be_written(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    Path("file").write_text("")
    for out in ("file", "file/below", "", "x" * 300, "~nobody-has-this-name/x", "a\0b"):
        with pytest.raises(ConfigError, match="out: "):
            runs.begin(loaded(f"out={out}"), "toy")

    def full(path: Path) -> Any:
        return shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(ConfigError, match="1 MB of free disk and the run needs 200"):
        runs.begin(loaded("out=full"), "toy")


def test_a_moved_run_is_reopened_with_its_own_config(toy: Path) -> None:  # noqa: F811
    runs.begin(loaded("out=dog", "seed=5"), "toy\nconfig")
    assert "dog" not in Path("dog/config.yaml").read_text()
    shutil.move("dog", "moved")
    reopened, folder = runs.reopen("moved", ["trainer.max_steps=9"])
    assert runs.made_of(Path("moved/config.yaml").read_text()) == "toy config"
    assert (reopened.seed, reopened.out, reopened.trainer.max_steps) == (5, "moved", 9)
    assert runs.reopen("moved/config.yaml", [])[0].trainer.max_steps == 9
    with pytest.raises(ConfigError, match="another run: seed: 5 -> 6"):
        runs.reopen(folder, ["seed=6"])
    for wrong in ("nowhere", "", "a\0"):
        with pytest.raises(ConfigError, match="--resume"):
            runs.reopen(wrong, [])


def test_a_run_does_not_become_shorter_than_it_is(toy: Path, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    runs.begin(loaded("out=dog", "trainer.max_steps=10"), "toy")
    assert runs.begin(loaded("out=dog", "trainer.max_steps=12"), "toy")[1] and not caplog.text, "nothing is done yet"
    Path("dog/summary.json").write_text('{"steps": 10}')
    for asked, kept, said in ((6, 12, ""), (10, 10, "12 -> 10"), (14, 14, "10 -> 14"), (14, 14, "")):
        caplog.clear()
        assert runs.begin(loaded("out=dog", f"trainer.max_steps={asked}"), "toy")[1] == Path("dog")
        assert config.load("dog/config.yaml").trainer.max_steps == kept
        assert caplog.text.count("\n") == bool(said) and said in caplog.text
    assert runs.reopen("dog", ["trainer.max_steps=20"])[0].trainer.max_steps == 20
    assert "14 -> 20; values that are given in percent of the run count from its new length" in caplog.text


# --- files ------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "old é")
    assert path.read_bytes() == "old é".encode()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == "old é".encode() and os.listdir(tmp_path) == ["file.json"]


def test_what_a_killed_process_left_half_written_is_taken_away(toy: Path) -> None:  # noqa: F811
    """By the next one that works there, and nothing else; not from a run within the run, which may be at work."""
    left = [
        "last.ckpt.77.threedgen.tmp",
        "deep/er/views.npz.1.threedgen.tmp",
        "model.77.threedgen.tmp/unet/config.json",
    ]
    others = ["notes.77.tmp", "deep/thesis.threedgen.tmp", "stages/one/config.yaml", "stages/one/x.7.threedgen.tmp"]
    runs.begin(loaded("out=run"), "toy")
    release(Path("run"))
    for name in (*left, *others):
        path = Path("run") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    runs.begin(loaded("out=run"), "toy")
    assert [name for name in left if (Path("run") / name).exists()] == []
    assert not Path("run/model.77.threedgen.tmp").exists() and all((Path("run") / name).exists() for name in others)
    assert unfinished(Path("run/last.ckpt")).name == f"last.ckpt.{os.getpid()}.threedgen.tmp"


def test_files_reach_the_disk_before_they_take_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), sync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new))[1])
    write_atomic(tmp_path / "a", b"1")
    assert calls == (["fsync", "replace", "fsync"] if os.name != "nt" else ["fsync", "replace"])


class _Tensor:
    def __float__(self) -> float:
        return 2.5


def test_metrics_survive_a_kill_and_forget_what_will_be_done_again(tmp_path: Path) -> None:
    metrics = ledger.Metrics(tmp_path)
    for step in range(1, 6):
        metrics.log(step, {"loss": _Tensor(), "part": step / 2} | ({"late": math.nan} if step > 2 else {}))
    with open(metrics.path, "a") as file:
        file.write('{"step": 6, "lo')
    resumed = ledger.Metrics(tmp_path, step=3)
    resumed.log(4, {"loss": 1.0})
    assert [line["step"] for line in ledger.read_metrics(tmp_path)] == [1, 2, 3, 4]
    with open(resumed.write_csv(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "part", "late"]
    assert rows[0]["loss"] == "2.5" and rows[3] == {"step": "4", "loss": "1.0", "part": "", "late": ""}
    assert ledger.read_metrics(tmp_path / "none") == []


def test_mutated_metrics_never_raise(tmp_path: Path) -> None:
    metrics = ledger.Metrics(tmp_path)
    for step in range(20):
        metrics.log(step, {"loss": step})
    whole, rng = metrics.path.read_bytes(), random.Random(0)
    for _ in range(100):
        cut, length = rng.randrange(len(whole)), rng.randrange(1, 9)
        middle = bytes(rng.randrange(256) for _ in range(rng.choice([0, length])))
        metrics.path.write_bytes(whole[:cut] + middle + whole[cut + length :])
        assert ledger.Metrics(tmp_path, step=10) and len(ledger.read_metrics(tmp_path)) <= 12


def test_a_full_disk_warns_once_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = ledger.Metrics(tmp_path / "gone")
    metrics.log(1, {"loss": 1})
    metrics.log(2, {"loss": 1})
    assert len(caplog.records) == 1 and "going on" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone counts the parent")
def test_peak_memory_is_that_of_this_process_and_not_of_its_parent() -> None:
    start = """
import subprocess, sys
much = b"x" * (600 << 20)
print(subprocess.run([sys.executable, "-c", sys.argv[1]], check=True, capture_output=True, text=True).stdout)
"""
    child = "from threedgen.run.metrics import peak_memory as peak; a = peak(); b'x' * (100 << 20); print(a, peak())"
    words, root = [sys.executable, "-c", start, child], Path(__file__).parents[2]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=root)
    before, after = (float(figure) for figure in done.stdout.split())
    assert before < 400 and 90 < after - before < 200


def test_the_summary_has_what_reproduces_a_run(toy: Path) -> None:  # noqa: F811
    summary = json.loads(ledger.write_summary(toy.parent, loaded("prompt=é"), 1.23456, steps=7).read_text("utf-8"))
    assert summary["seconds"] == 1.235 and summary["steps"] == 7 and summary["prompt"] == "é"
    assert summary["peak_memory_mib"] is None or 10 < summary["peak_memory_mib"] < 1e6
    assert summary["config_hash"] == config.config_hash(loaded("prompt=é"))
    assert {"versions", "cpu", "threads", "cores"} <= set(summary["environment"])
    assert "torch" in summary["environment"]["versions"]


def test_a_folder_with_files_of_others_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run would write over a mesh.glb or a summary.json that somebody keeps there."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/mesh.glb").write_text("precious")
    one = config.load("mvdream-toybox", ["prompt=a dog", "out=mine"])
    for ask in (runs.choose, runs.begin):
        with pytest.raises(ConfigError, match="^out: holds files that are not of a run, .* name a new folder"):
            ask(one, "mvdream-toybox")
    assert [path.name for path in Path("mine").iterdir()] == ["mesh.glb"]
    Path("outputs/mvdream-toybox").mkdir(parents=True)
    own = config.load("mvdream-toybox", ["prompt=a dog"])
    first, stored = runs.choose(own, "mvdream-toybox")
    first.mkdir()
    (first / "notes.txt").write_text("mine")
    assert stored is None and runs.choose(own, "mvdream-toybox")[0].name == f"{first.name}-2"
