"""LoRA of a frozen UNet (Hu et al. 2021, arXiv 2106.09685), applied by forward hooks.

DreamBooth trains a LoRA for a subject (an object shown in given images), VSD (ProlificDreamer, arXiv 2305.16213) trains
one on the renders.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from threedgen.config import ConfigError
from threedgen.guidance.guidance import add_view

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
POSE = 16


class LoRA(nn.Module):
    """Trainable matrices `down` and `up` of low rank for linear layers and convolutions of a UNet.

    A layer with weights W then returns W x + up(down(x)), plus its bias. `up` starts at zero. For a convolution,
    `down` has the layer's kernel size and `up` is 1 x 1.
    """

    def __init__(
        self,
        unet: nn.Module,
        rank: int = 4,
        generator: torch.Generator | None = None,
        std: Callable[[int], float] | None = None,
        targets: tuple[str, ...] = ATTENTION,
    ) -> None:
        """Create two matrices of rank `rank` per layer: `down`, applied to the layer's input, then `up`, which is zero.

        Args:
            unet: network whose layers the matrices fit. It is not changed here; `attach` applies the matrices to it.
            generator: CPU random generator of the initial `down`; None: torch's global generator.
            std: function from a layer's fan-in (input channels times kernel area) to the initial standard deviation of
                `down`; None: 1 / rank.
            targets: name endings of the linear and convolution layers that get matrices.

        Raises:
            ConfigError: no layer of `unet` matches `targets`.
        """
        super().__init__()
        kinds = (nn.Linear, nn.Conv2d)
        layers: dict[str, Any] = {n: m for n, m in unet.named_modules() if n.endswith(targets) and isinstance(m, kinds)}
        if not layers:
            raise ConfigError("a LoRA needs attention layers of a UNet, and this network has none")
        self.names = tuple(layers)
        sizes = [m.weight.shape for m in layers.values()]
        self.down = nn.ParameterList(
            _normal((rank, *size[1:]), 1 / rank if std is None else std(size[1:].numel()), generator) for size in sizes
        )
        self.up = nn.ParameterList(torch.zeros(size[0], rank) for size in sizes)

    def attach(self, unet: nn.Module) -> list[RemovableHandle]:
        """Apply the LoRA to `unet` by forward hooks, until the caller removes the returned handles."""
        return [
            unet.get_submodule(name).register_forward_hook(partial(_add, down, up))
            for name, down, up in zip(self.names, self.down, self.up, strict=True)
        ]


class PosedLoRA(LoRA):
    """LoRA of variational score distillation (VSD), which adds an embedding of the camera pose to the time embedding.

    The pose embedding starts at zero.
    """

    def __init__(self, unet: nn.Module, rank: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__(unet, rank, generator)
        time: Any = unet.get_submodule("time_embedding")
        width = int(time.linear_2.out_features)
        self.pose_in = nn.Parameter(_normal((width, POSE), POSE**-0.5, generator))
        self.pose_out = nn.Parameter(torch.zeros(width, width))

    def pose(self, c2w: Tensor) -> Tensor:
        """Return the pose embeddings (B, E) of B cameras, with the width E of the UNet's time embedding.

        `c2w` (B, 16) are camera-to-world matrices, row-major.
        """
        return F.linear(F.silu(F.linear(c2w, self.pose_in)), self.pose_out)

    @contextmanager
    def applied(self, unet: nn.Module, c2w: Tensor) -> Iterator[None]:
        """Within a `with` block, apply the LoRA to `unet` for images with row-major camera-to-world matrices (B, 16).

        Reference images that the UNet takes as a further view of each object (ImageDream) get zeros as pose.
        """

        def add_pose(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            poses = c2w
            if images := len(out) - len(c2w):  # ImageDream's UNet also takes the reference image of each object
                poses = add_view(c2w, c2w.new_zeros(images, POSE))
            return out + self.pose(poses).to(out.dtype)

        pose = unet.get_submodule("time_embedding").register_forward_hook(add_pose)
        with ExitStack() as stack:
            for handle in (*self.attach(unet), pose):
                stack.enter_context(handle)  # leaving the handle's context removes the hook
            yield


def _add(down: Tensor, up: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    x, layer = inputs[0].to(down.dtype), cast(Any, module)
    if down.ndim == 2:
        added = F.linear(F.linear(x, down), up)
    else:
        added = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up[..., None, None])
    return out + added.to(out.dtype)


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    return std * torch.randn(shape, generator=generator)
