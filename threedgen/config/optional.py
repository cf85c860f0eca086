"""Install commands of optional packages, and checks whether such a package is installed, without importing it."""

import importlib.util

from threedgen.config.command import install
from threedgen.config.errors import ConfigError

EXTRAS = {
    "pxr": ("usd-core", install("usd")),
    "coacd": ("coacd", install("parts")),
    "ray": ("ray", install("ray")),
    "sentencepiece": ("sentencepiece", install("deepfloyd")),
    "cv2": ("opencv-python-headless", install("matte")),
    "rembg": ("rembg", install("matte")),
    "onnxruntime": ("onnxruntime", install("matte")),
    "torch_fidelity": ("torch-fidelity", "pip install torch-fidelity"),
    "viser": ("viser", install("viser")),
    "tensorboard": ("tensorboard", install("tensorboard")),
    "wandb": ("wandb", install("wandb")),
    "triton": ("triton", install("triton")),
    "nerfacc": ("nerfacc", install("nerfacc")),
    "gsplat": ("gsplat", install("gsplat")),
    "xformers": ("xformers", install("xformers")),
    "tinycudann": (
        "tinycudann",
        'pip install "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"',  # not on PyPI
    ),
}
"""Dict from module name to (package name, command that installs it)."""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require(module: str, asked: str, instead: str) -> None:
    """Raise ConfigError with the install command if an optional package is not installed.

    Args:
        module: import name of one of the project's optional packages (the keys of `EXTRAS`), such as "wandb".
        asked: option that needs the package, as "key: value", such as "name: wandb".
        instead: alternative to the installation, for the message, such as "set logger=csv".
    """
    if not installed(module):
        package, how = EXTRAS[module]
        key, _, value = asked.rpartition(": ")
        raise ConfigError(f"{value} needs the package {package}: {how}, or {instead}", key)
