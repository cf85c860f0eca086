"""Parts that the probe and the identity network share: a block, pooling, preparation of images, and weight files."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.evaluation.metrics.figures import Json
from threedgen.geometry.views import resize
from threedgen.guidance.matte import convolution
from threedgen.run.disk import write_atomic, write_json

N = TypeVar("N", bound=nn.Module)


class Residual(nn.Module):
    """Residual block relu(x + f(x)) for x (B, ``width``, H, W), where f has two 3 x 3 convolutions (He et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(width)
        nn.init.zeros_(last.weight)
        self.path = nn.Sequential(convolution(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False), last)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.path(x))


def pooled(x: Tensor) -> Tensor:
    """Pool feature maps (B, D, H, W) to vectors (B, 2 D): the means, then the maxima of the D channels."""
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def prepare(images: Tensor, size: int) -> Tensor:
    """Resize square images (V, S, S, 3) in [0, 1] to network inputs (V, 3, size, size) in [0, 1], float32.

    Larger images are averaged over areas, smaller ones interpolated bilinearly. Raises ValueError if ``images`` are not
    square or have another shape.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are not square (V, H, W, 3): {tuple(images.shape)}")
    return resize(images.float(), size, size).permute(0, 3, 1, 2)


def write_network(path: Path, network: nn.Module, card: Json) -> None:
    """Write the weights of ``network`` to ``path``, a .safetensors file, and ``card`` to a .json file of the same name.

    The weights are rounded to float16. ``card`` has the settings from which `read_network` builds the network again,
    and may have other facts. Raises OSError if a file cannot be written.
    """
    tensors = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors))
    write_json(path.with_suffix(".json"), card)


def read_network(path: Path, make: Callable[[Json], N], key: str, remedy: str) -> tuple[N, Json]:
    """Read a network that `write_network` has written. Return the frozen float32 network in eval mode, and its card.

    ``path`` is the .safetensors file. The card is the content of the .json file beside it, from which ``make`` creates
    the network (type N). If a file is missing or damaged, a ConfigError for the config key ``key`` is raised, and its
    message ends with ``remedy``.
    """
    card = read_json(path.with_suffix(".json"))
    if not card:
        raise ConfigError(f"{path.with_suffix('.json')} is missing or damaged. {remedy}", key)
    try:
        network = make(card)
        network.load_state_dict(load_file(path))  # converts float16 to float32
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise ConfigError(f"{path} is damaged or of another kind ({reason}). {remedy}", key) from None
    return network.eval().requires_grad_(False), card
