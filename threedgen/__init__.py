"""Text to 3D by optimisation: any prior with any distillation and any representation.

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

from threedgen.places import folder as folder
from threedgen.run import numba_cache

# Huge pages for torch's large tensors (Linux): a third less time per step on a CPU. torch reads this on import.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# OpenMP threads sleep after microseconds of waiting. GNU's default, milliseconds, nearly doubles the time of a run
# beside another job.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
INTERFACE_VERSION = 1
"""Version of the interfaces that plug-ins use; it rises when one of them changes incompatibly."""

_HERE = Path(__file__).resolve().parent


def _bridge(name: str) -> None:
    """In a checkout, load the top-level folder `name` as `threedgen.name`, where setup.py installs it."""
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
    """Make a turntable and a mesh from a prompt; return the finished run, which a notebook displays.

    Args:
        prompt: text.
        config: file, or name of a shipped config of the task generate.
        quiet: show no progress.
        values: keys of the config: `seed=3`, `out="penguin"`, `trainer={"max_steps": 100}` or
            `**{"trainer.max_steps": 100}`.

    Raises:
        threedgen.config.ConfigError: for a mistake in the arguments.
    """
    from threedgen.systems.generate.task import generate as run  # imports torch

    return run(prompt=prompt, config=config, quiet=quiet, **values)
