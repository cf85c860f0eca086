"""Optional packages: asked for before any work begins, and without loading them."""

from __future__ import annotations

import importlib.util

from threedgen.config.command import install
from threedgen.config.errors import ConfigError

EXTRAS = {
    "pxr": ("usd-core", install("usd")),
    "coacd": ("coacd", install("parts")),
    "ray": ("ray", install("ray")),
    "sentencepiece": ("sentencepiece", install("deepfloyd")),
    "torch_fidelity": ("torch-fidelity", "pip install torch-fidelity"),
    "viser": ("viser", install("viser")),
    "triton": ("triton", install("triton")),
    "nerfacc": ("nerfacc", install("nerfacc")),
    "xformers": ("xformers", install("xformers")),
    "tinycudann": (
        "tinycudann",
        "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'",
    ),
}
"""Module: the package that holds it, and how to get that. tinycudann is on no index: pip builds it from its sources."""


def installed(module: str) -> bool:
    """Can it be imported? Nothing is loaded."""
    return importlib.util.find_spec(module) is not None


def require(module: str, asked: str, instead: str) -> None:
    """Raises ConfigError if a module of `EXTRAS` is missing: what asked for it, how to get it, what to do instead."""
    if not installed(module):
        package, how = EXTRAS[module]
        key, _, value = asked.rpartition(": ")
        raise ConfigError(f"{value} needs the package {package}: {how}, or {instead}", key)
