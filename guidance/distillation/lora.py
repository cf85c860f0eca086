"""A second network for the price of some small matrices: low-rank additions to a frozen UNet (LoRA), and a camera.

VSD (ProlificDreamer, arXiv 2305.16213) needs a copy of the prior that learns what the renders look like. The copy is
the prior itself with low-rank additions on its attention (Hu et al. 2021, arXiv 2106.09685) and an embedding of the
pose, which is added to that of the time step as MVDream does it. They are switched on for one call at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.config import ConfigError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
POSE = 16


class LoRA(nn.Module):
    """Additions to a UNet that is not kept: outputs of linear layers, W x + up(down(x)), and of the time embedding.

    It begins without effect: ``up`` and the last layer of the pose's embedding are zero, so the copy is at first the
    prior itself. ``generator`` (CPU) draws the rest. Raises ConfigError for a network without attention.
    """

    def __init__(self, unet: nn.Module, rank: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__()
        layers = {n: m for n, m in unet.named_modules() if n.endswith(TARGETS) and isinstance(m, nn.Linear)}
        if not layers:
            raise ConfigError("vsd trains additions to the attention of a UNet, and this one has none", "distillation")
        self.names = tuple(layers)
        sizes = [(m.in_features, m.out_features) for m in layers.values()]
        self.down = nn.ParameterList(_normal((rank, wide), 1 / rank, generator) for wide, _ in sizes)
        self.up = nn.ParameterList(torch.zeros(wide, rank) for _, wide in sizes)
        time: Any = unet.get_submodule("time_embedding")
        width = int(time.linear_2.out_features)
        self.pose_in = nn.Parameter(_normal((width, POSE), POSE**-0.5, generator))
        self.pose_out = nn.Parameter(torch.zeros(width, width))

    def pose(self, c2w: Tensor) -> Tensor:
        """Poses (B,16), the numbers of the matrix as they are, to additions to the time embedding (B,E)."""
        return F.linear(F.silu(F.linear(c2w, self.pose_in)), self.pose_out)

    @contextmanager
    def applied(self, unet: nn.Module, c2w: Tensor) -> Iterator[None]:
        """Inside, ``unet`` (the one it was made for) answers as the copy, for images seen from ``c2w`` (B,16)."""
        with ExitStack() as stack:
            for name, down, up in zip(self.names, self.down, self.up, strict=True):
                hook = unet.get_submodule(name).register_forward_hook(partial(_add, down, up))
                stack.callback(hook.remove)
            hook = unet.get_submodule("time_embedding").register_forward_hook(
                lambda module, given, out: out + self.pose(c2w).to(out.dtype)
            )
            stack.callback(hook.remove)
            yield


def _add(down: Tensor, up: Tensor, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """The forward hook of one layer."""
    return out + F.linear(F.linear(given[0].to(down.dtype), down), up).to(out.dtype)


def _normal(shape: tuple[int, int], std: float, generator: torch.Generator | None) -> Tensor:
    return std * torch.randn(shape, generator=generator)
