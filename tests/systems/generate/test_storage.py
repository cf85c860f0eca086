import errno
import functools
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.kept_folder import kept_folder, made_once
from tests.support.power_loss import State, restore, states
from tests.support.storage_faults import preloaded
from tests.support.task_server import TINY, assert_same, finished_run, server, tiny_generate, weights
from tests.support.toy_run import log
from threedgen.run.metrics import read_metrics, read_summary

FILES = ("*.png", "*.mp4", "*.glb")  # result files with the same bytes in each run
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TRAINER = TINY["trainer"] | {"max_steps": 8}  # half of the steps of other tests: each fault costs two runs
SMALL_ASSET = {"budget": 200, "texture": 64, "lods": [], "resolution": 16, "refine": 2}
FAULTS, SEED = (int(os.environ.get(name, value)) for name, value in (("FAULTS", "14"), ("FAULTS_SEED", "11")))
PART = 20  # faults of one test, which takes minutes, of FAULTS of each kind
faulty = pytest.mark.skipif(not preloaded(), reason="needs Linux and a C compiler")


def command(folder: Path) -> list[str]:
    return ["--config", str(tiny_generate(folder, export=SMALL_ASSET, trainer=TRAINER)), "out=run"]


def generate(work: Path) -> list[str]:
    return command(work.parent)


def export(work: Path) -> list[str]:
    shutil.copytree(finished_run(command), work / "run", dirs_exist_ok=True)
    return ["--config", "export", "run=run", *(f"{key}={value}" for key, value in SMALL_ASSET.items()), "budget=150"]


def batch(work: Path) -> list[str]:
    (work / "prompts.txt").write_text("a red dog\na blue car\n")
    config = tiny_generate(work.parent, export={"enabled": False})
    words = ["prompts=prompts.txt", f"configs=[../{config.name}]", "threads=1", "out=run"]
    return ["--config", "batch", *words, "overrides=[trainer.max_steps=3, size=8, 'refine.strengths=[]']"]


KINDS = {"generate": generate, "export": export, "batch": batch}


def make_work(folder: Path, kind: str = "generate") -> tuple[Path, list[str]]:
    """Return a new working folder and the command of a kind of run in it."""
    work = folder / "work"
    work.mkdir(parents=True)
    return work, KINDS[kind](work)


def undisturbed(kind: str) -> Path:
    def make(folder: Path) -> None:
        work, words = make_work(folder, kind)
        assert server().run(work, words=words) == 0, log(work)

    return made_once(f"storage-{kind}", make) / "work" / "run"


def assert_complete(work: Path, case: object, kind: str = "generate") -> None:
    run, whole = work / "run", undisturbed(kind)
    for folder in (path.parents[1].relative_to(whole) for path in whole.rglob("last.ckpt")):
        assert_same(weights(run / folder), weights(whole / folder))
        steps = [[row["step"] for row in read_metrics(root / folder)] for root in (run, whole)]
        assert steps[0] == steps[1], case
        assert read_summary(run / folder)["triangles"] == read_summary(whole / folder)["triangles"]
    names, found = ({p.relative_to(root) for form in FILES for p in root.rglob(form)} for root in (whole, run))
    assert len(names) > 3 and names == found, case
    for name in names:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), (case, name)


@functools.cache
def recorded(kind: str) -> tuple[Path, list[State]]:
    """Return the folder of the recorded contents, and what a power loss at each moment of a run leaves."""
    folder = kept_folder()
    work, words = make_work(folder, kind)
    assert server().run(work, words=words, power_loss=str(folder / "states")) == 0, log(work)
    return folder / "states", states(folder / "states")


def assert_goes_on(kind: str, number: int, folder: Path) -> None:
    contents, found = recorded(kind)
    work, words = make_work(folder, kind)
    shutil.rmtree(work)
    work.mkdir()
    restore(found[number], contents, work)
    assert server().run(work, words=words) == 0, (kind, number, log(work))
    assert_complete(work, number, kind)


@pytest.mark.parametrize("kind", ["generate", "export"])
def test_run_goes_on_after_a_power_loss(tmp_path: Path, kind: str) -> None:
    assert_goes_on(kind, len(recorded(kind)[1]) // 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_run_goes_on_after_a_power_loss_at_any_moment(tmp_path: Path, kind: str) -> None:
    print(f"{kind}: {len(recorded(kind)[1])} states of the disk")
    for number in range(len(recorded(kind)[1])):
        assert_goes_on(kind, number, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))


def assert_goes_on_after_a_fault(folder: Path, kind: str, **fault: Any) -> int:
    """Run a command while its storage fails, is slow or kills it, then without fault. Return the first exit code."""
    work, words = make_work(folder, kind)
    code, case = server().run(work, words=words, fault=fault), (kind, fault)
    text = log(work)
    if fault.get("error") == -signal.SIGKILL:
        missed = code == 0 and fault["number"] > 0.9 * uses(kind)  # the number varies: some files are written by time
        assert missed or code == -signal.SIGKILL, (case, text)
    else:
        assert "Traceback" not in text and code in (0, 1, 2, 3, 4), (case, code, text)
        end = "\n".join(text.splitlines()[-3:])  # ffmpeg keeps the reason for itself, and may write a line after ours
        assert not code or any(part in end for part in (os.strerror(fault["error"]), "encoder")), (case, text)
    assert server().run(work, words=words) == 0, (case, log(work))
    assert_complete(work, case, kind)
    return code


@functools.cache
def uses(kind: str) -> int:
    work, words = make_work(kept_folder(), kind)
    assert server().run(work, words=words, fault={"number": 0}) == 0, log(work)
    return int((work.parent / "uses").read_text())


@faulty
@pytest.mark.parametrize(("kind", "lasting"), [("generate", False), ("generate", True), ("export", True)])
def test_storage_fault_is_said_and_the_run_goes_on(tmp_path: Path, kind: str, lasting: bool) -> None:
    assert_goes_on_after_a_fault(tmp_path, kind, number=uses(kind) // 2, error=errno.EIO, lasting=lasting)


def random_fault(rng: random.Random, number: int) -> dict[str, Any]:
    lasting = rng.random() < 0.5  # first: the seeds of recorded runs depend on the order
    return {"lasting": lasting} | ({"seconds": 0.02} if number % 10 == 9 else {"error": rng.choice(ERRORS)})


ATTACKS = {"faults": random_fault, "kills": lambda rng, number: {"error": -signal.SIGKILL}}


@faulty
@pytest.mark.slow
@pytest.mark.parametrize("part", range(-(-FAULTS // PART)))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_run_goes_on_after_any_moment(tmp_path: Path, attack: str, kind: str, part: int) -> None:
    rng, codes, different = random.Random(f"{SEED} {kind} {part}"), Counter[int](), []
    for k in range(min(PART, FAULTS - PART * part)):
        case = {"number": rng.randint(1, uses(kind))} | ATTACKS[attack](rng, k)
        try:
            codes[assert_goes_on_after_a_fault(tmp_path / str(k), kind, **case)] += 1
        except Exception as error:  # also a file or a value that is missing
            different.append(str(error))
            print(error, flush=True)
        shutil.rmtree(tmp_path / str(k))
    count = sum(codes.values()) + len(different)
    print(f"{count} {attack} at {uses(kind)} uses, {kind}: exit codes {dict(codes)}; differences: {len(different)}")
    assert not different


def test_run_goes_on_in_another_place_and_time(tmp_path: Path) -> None:
    """Odd names, a folder that moved, a clock set back an hour, 64 descriptors, no home, no temporary folder, C."""
    work, words = make_work(tmp_path)
    name = "a 'b' \"c\" 🐕 $HOME; * %s {} é " + 200 * "x"
    server().killed(work, words=[*words[:2], f"out={name}"], hold_at=4)
    place = work / "else where" / name[::-1][:200]
    place.parent.mkdir()
    (work / name).rename(place)
    for path in place.rglob("*"):
        os.utime(path, (later := path.stat().st_mtime + 3600, later))
    bare = {"HOME": None, "TMPDIR": "/nonexistent", "LC_ALL": "C", "LANG": None}
    assert server().run(work, words=["--resume", str(place)], environment=bare, descriptors=64) == 0, log(work)
    place.rename(work / "run")
    assert_complete(work, "place")
