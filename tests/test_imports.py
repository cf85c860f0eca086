import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.example_run import example
from tests.support.toy_task import YAML

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "pytorch_lightning", "lightning_fabric", "diffusers", "transformers", "numba", "kornia", "nerfacc")
NO_TORCH = (
    "threedgen.cli", "threedgen.config", "threedgen.run.folder", "threedgen.run.disk", "threedgen.run.prompts",
    "threedgen.run.text", "threedgen.toybox.prompts", "threedgen.guidance.weights.tokens",
    "threedgen.systems.prompted", "threedgen.systems.generate.sections",
)  # fmt: skip
"""With every options.py: what answers --help, and every mistake in a config."""
SOURCES = sorted(path for room in ("threedgen", "guidance", "representations") for path in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    """guidance/priors/mvdream.py -> threedgen.guidance.priors.mvdream"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "threedgen" else ("threedgen", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Full names that a file imports; `top_only` leaves out what functions import when they are called."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in _statements(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < min(3, len(path.relative_to(ROOT).parts)), f"{path}: an import that climbs"
            above = package if node.level == 1 else package.rpartition(".")[0]
            base = ".".join(part for part in (above if node.level else "", node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes outside functions and outside `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _statements(node)


# Each room may import the rooms above it in this table that it names, and itself; "options" of a room are the config
# models in its options.py, which import no torch.
BELOW = ("config", "run", "places")
CORE = (*BELOW, "geometry", "train")
KINDS = (*CORE, "guidance", "representations")
ARROWS: dict[str, tuple[str, ...]] = {
    "places": (),
    "config": ("places",),
    "run": ("config", "places"),
    "geometry": BELOW,
    "train": (*BELOW, "geometry"),
    "guidance": CORE,  # guidance and representations never import each other
    "representations": CORE,
    "testing": KINDS,
    "data": KINDS,
    "export": KINDS,
    "viewer": (*KINDS, "export"),
    "systems": (*KINDS, "data", "export", "viewer"),
    "evaluation": (*KINDS, "data", "export", "viewer", "systems"),
    "studio": (*KINDS, "data", "export", "viewer", "systems"),
    "toybox": (
        *KINDS,
        "data",
        "export",
        "viewer",
        "systems",
        "evaluation",
    ),  # nothing imports it: the registry names it
    "cli": BELOW,
    "": ("places",),
    "__main__": ("cli",),
}


def room(name: str) -> str:
    """threedgen.guidance.priors.mvdream -> guidance; "" for the package itself, which all may import."""
    return (*name.split("."), "")[1]


def test_arrows() -> None:
    """Rooms import downwards only, also inside functions; what a config names is imported by the registry.

    Only the package itself reaches up, when it is called (threedgen.generate).
    """
    wrong = []
    for path in SOURCES:
        here = module_name(path)
        for name in imports(path, top_only=not room(here)):
            assert name.split(".")[0] not in ("guidance", "representations"), f"{path}: write threedgen.{name}"
            there = room(name) if name.split(".")[0] == "threedgen" else ""
            if there in ARROWS and there not in ("", room(here), *ARROWS.get(room(here), ())):
                wrong.append(f"{here} imports {name}")
    assert not wrong


def test_metrics_import_no_evaluation() -> None:
    metrics = "threedgen.evaluation.metrics"
    for path in (ROOT / "threedgen" / "evaluation" / "metrics").rglob("*.py"):
        wrong = [name for name in imports(path) if name.startswith("threedgen.evaluation.") and metrics not in name]
        assert not wrong, f"{path} must not import {', '.join(wrong)}"


def test_every_room_has_its_arrows() -> None:
    assert {room(module_name(path)) for path in SOURCES} == set(ARROWS)


LIGHT = [
    path
    for path in SOURCES
    if path.name == "options.py" or any(f"{module_name(path)}.".startswith(f"{light}.") for light in NO_TORCH)
]


def test_lightning_waits_until_the_views_are_sampled() -> None:
    """A run of the task generate imports what trains after the first that a user sees (systems/generate/task.py)."""
    code = "import sys, threedgen.systems.generate.task; print('pytorch_lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
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
