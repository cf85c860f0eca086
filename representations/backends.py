"""Selection of the kernel implementation (back end): the configured one, or the fastest one that is installed."""

import importlib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch

from threedgen.config.errors import ConfigError
from threedgen.config.optional import EXTRAS, installed

from .options import require_backend
from .scan import requires_deterministic

DEVICE_TYPES = {"numba": "cpu", "triton": "cuda", "tinycudann": "cuda", "nerfacc": "cuda"}
"""Device type of each back end that computes in float32 only. The back end `torch` supports all devices and dtypes."""


def choose(name: str, device: torch.device, dtype: torch.dtype = torch.float32, varying: Sequence[str] = ()) -> str:
    """Return the name of the back end for a device and a dtype.

    "auto" selects numba on a CPU, triton on a GPU if it is installed, and torch otherwise.

    Args:
        name: "auto" or the name of a back end.
        varying: names of back ends whose results vary between runs. "auto" skips them if `trainer.deterministic=true`.

    Raises:
        ConfigError: if the named back end is not installed or does not support the device or the dtype.
    """
    if name == "auto":
        skipped = varying if requires_deterministic() else ()
        fast = [backend for backend in ("numba", "triton") if backend not in skipped]
        return next((backend for backend in fast if _supports(backend, device, dtype) and installed(backend)), "torch")
    require_backend(name)
    if name != "torch" and not _supports(name, device, dtype):
        place = "a CPU" if DEVICE_TYPES[name] == "cpu" else "a CUDA device"
        raise ConfigError(
            f"{name!r} computes float32 on {place}, not {dtype} on {device.type}. Choose 'auto' or 'torch'.", "backend"
        )
    return name


def load(
    modules: Mapping[str, str],
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    varying: Sequence[str] = (),
) -> ModuleType:
    """Import the module of the back end that `choose` selects. The import may compile kernels.

    Args:
        modules: import path of the module of each back end, by the name of the back end.
        name, device, dtype, varying: arguments of `choose`.

    Raises:
        ConfigError: for the reasons of `choose`, or if an optional package is installed but its import fails.
    """
    name = choose(name, device, dtype, varying)
    try:
        return importlib.import_module(modules[name])
    except (ImportError, OSError, RuntimeError) as error:
        if name not in EXTRAS:
            raise
        raise ConfigError(
            f"{name!r} is installed but cannot be loaded: {error}. Choose 'auto' or 'torch'.", "backend"
        ) from error


def _supports(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"  # tests run triton on a CPU
    return dtype == torch.float32 and (device.type == DEVICE_TYPES[name] or interpreted)
