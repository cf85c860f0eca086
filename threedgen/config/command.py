"""Shell commands shown in messages: calls of this program, and optional packages with their installation."""

import importlib.util
import shlex
from pathlib import Path

from .errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""Folder that contains this package: the root of a checkout, or the site-packages folder of an installation."""


def in_checkout() -> bool:
    return (ROOT / "launch.py").is_file()


def command(*words: str) -> str:
    """Return a shell command that runs this program with the arguments `words`, such as "threedgen --list"."""
    return " ".join(["python launch.py" if in_checkout() else "threedgen", *map(shlex.quote, words)])


def install(extra: str) -> str:
    """Return the pip command that installs `extra`, a group of optional packages in setup.py, such as "ray"."""
    return f"pip install -e '.[{extra}]'" if in_checkout() else f"pip install 'threedgen[{extra}]'"


EXTRAS = {
    "pxr": ("usd-core", install("usd")),
    "coacd": ("coacd", install("parts")),
    "ray": ("ray", install("ray")),
    "sentencepiece": ("sentencepiece", install("deepfloyd")),
    "rembg": ("rembg", install("matte")),
    "torch_fidelity": ("torch-fidelity", "pip install torch-fidelity"),
    "viser": ("viser", install("viser")),
    "tensorboard": ("tensorboard", install("tensorboard")),
    "wandb": ("wandb", install("wandb")),
    "triton": ("triton", install("triton")),
    "nerfacc": ("nerfacc", install("nerfacc")),
    "xformers": ("xformers", install("xformers")),
    "tinycudann": (
        "tinycudann",
        "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch'",  # not on PyPI
    ),
}
"""Dict from module name to (package name, command that installs it)."""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require(module: str, asked: str, instead: str) -> None:
    """Raise ConfigError with the install command if an optional package is not installed.

    Args:
        module: import name of the package, a key of `EXTRAS`.
        asked: option of the user that needs the package, as "key: value".
        instead: alternative to the installation, as an imperative such as "set logger=csv".
    """
    if not installed(module):
        package, how = EXTRAS[module]
        key, _, value = asked.rpartition(": ")
        raise ConfigError(f"{value} needs the package {package}: {how}, or {instead}", key)
