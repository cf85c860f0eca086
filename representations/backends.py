"""Selection of the back end (kernel implementation): the configured one, or the fastest one that is installed."""

import importlib
import logging
import os
from collections.abc import Container, Mapping
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config.errors import ConfigError, one_line
from threedgen.config.optional import EXTRAS, installed

from .options import require_backend

logger = logging.getLogger(__name__)

DEVICE_TYPES = {"numba": "cpu", "triton": "cuda", "tinycudann": "cuda", "nerfacc": "cuda", "gsplat": "cuda"}
"""Back end -> device type on which it runs, in float32 only. The back end `torch` runs everywhere, with every dtype."""
FAST = ("numba", "triton", "gsplat")
"""Back ends (kernel implementations) from which the option `backend=auto` chooses, in order of preference."""
COMPILER = "Install a C compiler and Python's headers (on Debian and Ubuntu gcc and python3-dev)"
FIELD_KERNELS = ("numba", "triton")
"""Fast back ends of the hash grid and of the ray marcher."""


def choose(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, among: Container[str] = FIELD_KERNELS
) -> str:
    """Return the name of the back end (kernel implementation) to use: `name`, or for "auto" the fastest available one.

    "auto" becomes the first of "numba" (CPU), "triton" and "gsplat" (GPU) that is in `among`, is installed, can start
    and supports the device and the dtype; if there is none, "torch". On torch's meta device, every name becomes "meta".

    Args:
        among: back ends that the computation has; by default the fast ones of the hash grid and of the ray marcher.

    Raises:
        ConfigError: if the back end `name` is not installed, cannot start, or does not support the device or the dtype.
    """
    if device.type == "meta":
        return "meta"
    if name == "auto":
        fast = (each for each in FAST if each in among and _supports(each, device, dtype) and installed(each))
        return next((each for each in fast if not _problem(each, device)), "torch")
    require_backend(name)
    if problem := _problem(name, device):
        raise ConfigError(f"{problem}. {COMPILER}, or choose 'auto' or 'torch'.", "backend", name)
    if name != "torch" and not _supports(name, device, dtype):
        place = "a CPU" if DEVICE_TYPES[name] == "cpu" else "a CUDA device"
        problem = f"{name!r} computes float32 on {place}, not {dtype} on {device.type}"
        raise ConfigError(f"{problem}. Choose 'auto' or 'torch'.", "backend")
    return name


def load(modules: Mapping[str, str], name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> ModuleType:
    """Import the back end `name` and return its module; "auto" is the fastest one for the device and the dtype.

    `modules` maps the names of all back ends of one computation, such as ray marching, to import paths. Raises
    ConfigError if the back end `name` is not installed, cannot be imported, or does not support the device or dtype.
    """
    name = choose(name, device, dtype, modules)
    try:
        return importlib.import_module(modules[name])
    except (ImportError, OSError, RuntimeError) as error:
        if name not in EXTRAS:
            raise
        problem = f"{name!r} is installed but cannot be loaded: {error}"
        raise ConfigError(f"{problem}. Choose 'auto' or 'torch'.", "backend") from error


def _supports(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"  # tests run triton on a CPU
    return dtype == torch.float32 and (device.type == DEVICE_TYPES[name] or interpreted)


def _problem(name: str, device: torch.device) -> str:
    return start_triton() if name == "triton" and device.type == "cuda" and torch.cuda.is_available() else ""


@cache
def start_triton() -> str:
    """Start Triton's driver. Return "", or the problem if it does not start; then also log a warning, once.

    Triton compiles a part of its driver, in C, when it first runs on a machine.
    """
    from triton.runtime import driver

    try:
        driver.active  # noqa: B018  # the property starts it
    except Exception as error:  # no compiler, no Python.h: RuntimeError, CalledProcessError and others
        problem = f"Triton does not start ({one_line(error)[:300]})"
        logger.warning("%s, so that backend=auto is PyTorch, which is slower. %s", problem, COMPILER)
        return problem
    return ""


# --- deterministic algorithms


def requires_deterministic() -> bool:
    """Return whether torch raises errors for nondeterministic algorithms (config option `trainer.deterministic`)."""
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled and not torch.is_deterministic_algorithms_warn_only_enabled()


def cumsum(values: Tensor, dim: int) -> Tensor:
    """Return `values.cumsum(dim)`.

    If torch.use_deterministic_algorithms is on, torch's own function raises an error for floats on CUDA; this one does
    not.
    """
    return deterministic_cumsum(values, dim) if values.is_cuda and requires_deterministic() else values.cumsum(dim)


def deterministic_cumsum(values: Tensor, dim: int) -> Tensor:
    """Return the cumulative sum along `dim` in log2(n) tensor additions, where n is the size of `dim`.

    Unlike torch's own function on CUDA, it is deterministic (Hillis and Steele 1986).
    """
    total, shift = values.movedim(dim, -1), 1
    while shift < total.shape[-1]:
        total = total + F.pad(total[..., :-shift], (shift, 0))
        shift *= 2
    return total.movedim(-1, dim)
