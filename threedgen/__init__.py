"""threedgen: text to 3D by optimisation; any prior x any distillation x any representation.

import threedgen
run = threedgen.generate(prompt="a red penguin", out="penguin")
print(run.folder)
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from threedgen.run import numba_cache

# Huge pages for torch's large tensors (Linux): a third less time for a step on a CPU.  torch reads this when it is
# imported, which is later.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# OpenMP's threads wait for each other asleep after some microseconds (GNU's, by default milliseconds: beside another
# job, which they keep from its core, a run then takes nearly twice as long).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """A folder of the project (configs, weights, guidance, ...): inside the installed package, or beside it
    in a checkout."""
    inside = _HERE / name
    return inside if inside.is_dir() else _HERE.parent / name


def _bridge(name: str) -> None:
    """In a checkout, load the top-level folder `name` under its one true name, `threedgen.name`.

    setup.py maps the folder there on installation; a checkout's own threedgen/ shadows what is installed.
    """
    init = _HERE.parent / name / "__init__.py"
    if (_HERE / name).is_dir() or not (_HERE.parent / "launch.py").is_file() or not init.is_file():
        return
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", init)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {init}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    setattr(sys.modules[__name__], name, module)
    spec.loader.exec_module(module)


for _name in ("guidance", "representations"):
    _bridge(_name)

numba_cache.choose(_HERE)


def generate(prompt: str, config: str = "mvdream-toybox", quiet: bool = False, **values: Any) -> Any:
    """A prompt becomes a turntable and a mesh; gives back the finished run with its files.

    `values` are keys of the config: `seed=3`, `out="penguin"`, `trainer={"max_steps": 100}` or
    `**{"trainer.max_steps": 100}`. What it does, and how far it is, is shown unless it is to be `quiet`.  In a notebook
    the run shows itself. Raises threedgen.config.ConfigError on a mistake in them.
    """
    from threedgen.systems.generate.task import generate as run  # imports torch, so not before it is asked for

    return run(prompt=prompt, config=config, quiet=quiet, **values)
