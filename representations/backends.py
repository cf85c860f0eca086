"""Which implementation of the kernels computes: the one that a config asks for, or the fastest that can."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import ModuleType

import torch

from threedgen.config.errors import ConfigError
from threedgen.config.optional import EXTRAS, installed

from .options import require_backend

PLACES = {"numba": "cpu", "triton": "cuda", "tinycudann": "cuda", "nerfacc": "cuda"}
"""Where each computes, float32 everywhere; plain torch computes anything anywhere."""


def choose(asked: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """A name for "auto": numba on a CPU, triton on a GPU where it is installed, else torch; other names are checked.

    Where deterministic algorithms are demanded (trainer.deterministic=true) auto leaves out triton, which adds to the
    hash grid's gradient in any order.
    Raises ConfigError for a back end that is not installed, or cannot compute this dtype on this device.
    """
    if asked == "auto":
        demanded = torch.are_deterministic_algorithms_enabled()
        strict = demanded and not torch.is_deterministic_algorithms_warn_only_enabled()
        fast = ("numba",) if strict else ("numba", "triton")
        return next((name for name in fast if _can(name, device, dtype) and installed(name)), "torch")
    require_backend(asked)
    if asked != "torch" and not _can(asked, device, dtype):
        place = "a CPU" if PLACES[asked] == "cpu" else "a CUDA device"
        raise ConfigError(
            f"{asked!r} computes float32 on {place}, not {dtype} on {device.type}; choose 'auto' or 'torch'", "backend"
        )
    return asked


def load(
    modules: Mapping[str, str], asked: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> ModuleType:
    """The module that computes, of `modules` by the names of `choose`; a missing build may be made now.

    Raises ConfigError as `choose` does, and for an optional package that is there but cannot be loaded.
    """
    name = choose(asked, device, dtype)
    try:
        return importlib.import_module(modules[name])
    except (ImportError, OSError, RuntimeError) as error:
        if name not in EXTRAS:
            raise
        raise ConfigError(
            f"{name!r} is installed but cannot be loaded: {error}; choose 'auto' or 'torch'", "backend"
        ) from error


def _can(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Triton's interpreter, for tests, computes on a CPU too."""
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return dtype == torch.float32 and (device.type == PLACES[name] or interpreted)
