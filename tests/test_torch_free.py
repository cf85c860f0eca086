"""Answers and mistakes before the task loads no torch: all of them asked in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.example_run import example
from tests.support.toy_task import YAML
from tests.test_imports import HEAVY, LIGHT, module_name

ROOT = Path(__file__).parents[1]
SCRIPT = """
import contextlib, io, json, sys
from tests.support import toy_task
from threedgen import cli

def ascii_file():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")

def ask(words):
    out, err = ascii_file(), ascii_file()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    err.flush()
    return {"code": code, "torch": "torch" in sys.modules, "err": err.buffer.getvalue().decode()}

toy_task.register()
print(json.dumps([ask(words) for words in json.loads(sys.argv[1])]))
"""


class Case(NamedTuple):
    """Words of a command, its exit code, and a part of its stderr."""

    words: list[str]
    code: int = 0
    part: str = ""


TOY = ["--config", "toy.yaml"]
CASES = [
    Case(["prompt= "], 2, "prompt: is empty"),
    Case(["prompt=a corgi"], 2, "'corgi' by dog"),
    Case(["--config", "mvdream-sd21.yaml", "prompt=a cat"], 2, "hf download MVDream/MVDream"),
    Case(["--config", "train-toybox-prior", "start=nowhere"], 2, "start: there is no file or folder"),
    Case([*TOY, "sed=1"], 2, "seed"),
    *(Case([*TOY, word]) for word in ("--list", "--help", "--print-config", "prompt=é\n🐶")),
    Case(["--config", "report", "run=runs/one"]),
    Case(["--config", "gallery", "runs=runs"]),
]


def python(folder: Path, code: str, *words: str) -> str:
    """Return what a process writes to stdout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the commands answer, by their words."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "toy.yaml").write_text(YAML, encoding="utf-8")
    example(folder / "runs" / "one")
    found = json.loads(python(folder, SCRIPT, json.dumps([case.words for case in CASES])))
    return {str(case.words): answer for case, answer in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case.words[:4]))
def test_command_answers_without_torch(case: Case, answers: dict[str, dict[str, object]]) -> None:
    answer = answers[str(case.words)]
    assert answer["code"] == case.code and not answer["torch"], answer["err"]
    assert case.part in str(answer["err"]) and str(answer["err"]).count("\n") == (case.code == 2)


def test_what_answers_loads_nothing_heavy_and_is_quick(tmp_path: Path) -> None:
    names = ", ".join(["threedgen.guidance.weights.loading", *map(module_name, LIGHT)])
    code = f"import sys, {names}; print([name for name in {HEAVY!r} if name in sys.modules])"
    before = os.times()
    assert python(tmp_path, code).strip() == "[]" and len(LIGHT) > 20
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 3, "all of them; the promise for --help is one second on an idle machine"
