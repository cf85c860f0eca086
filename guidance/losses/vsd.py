"""Variational score distillation (VSD; Wang et al. 2023, "ProlificDreamer", arXiv 2305.16213).

SDS compares the prior's prediction with the added noise. VSD compares it with the prediction of the prior's UNet with a
LoRA and a pose embedding, which is trained on the renders at the same time. Guidance scales of 7.5 suffice.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from threedgen.config import ConfigError
from threedgen.guidance.guidance import Condition, Denoiser, per_image
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import fresh_noise
from threedgen.run.memory import to_device

from .sds import Distillation, Logs, NoisyLatents, RenderedViews

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")
POSE = 16


class LoRA(nn.Module):
    """Trainable matrices `down` and `up` of low rank for linear layers and convolutions of a UNet.

    A layer then returns W x + scale up(down(x)). `up` starts at zero. For a convolution, `down` has the layer's kernel
    size and `up` is 1 x 1.
    """

    def __init__(
        self,
        unet: nn.Module,
        rank: int = 4,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
        std: Callable[[int], float] | None = None,
        targets: tuple[str, ...] = ATTENTION,
    ) -> None:
        """Create matrices of rank `rank`. Raises ConfigError if no layer of `unet` matches `targets`.

        Args:
            generator: CPU random generator of the initial `down`; None: torch's global one.
            scale: factor of the LoRA's output in each layer.
            std: function from a layer's fan-in (input channels times kernel area) to the initial standard deviation of
                `down`; None: 1 / rank.
            targets: endings of the names of the layers that get matrices.
        """
        super().__init__()
        kinds = (nn.Linear, nn.Conv2d)
        layers: dict[str, Any] = {n: m for n, m in unet.named_modules() if n.endswith(targets) and isinstance(m, kinds)}
        if not layers:
            raise ConfigError("a LoRA needs attention layers of a UNet, and this network has none")
        self.names, self.scale = tuple(layers), scale
        sizes = [m.weight.shape for m in layers.values()]
        self.down = nn.ParameterList(
            _normal((rank, *size[1:]), 1 / rank if std is None else std(size[1:].numel()), generator) for size in sizes
        )
        self.up = nn.ParameterList(torch.zeros(size[0], rank) for size in sizes)

    def attach(self, unet: nn.Module) -> list[RemovableHandle]:
        """Apply the LoRA to `unet` by forward hooks, until the caller removes the returned handles."""
        return [
            unet.get_submodule(name).register_forward_hook(partial(_add, down, up, self.scale))
            for name, down, up in zip(self.names, self.down, self.up, strict=True)
        ]


class PosedLoRA(LoRA):
    """LoRA of VSD, conditioned on the camera: it adds an embedding of the pose to the UNet's time embedding.

    The pose embedding starts at zero.
    """

    def __init__(self, unet: nn.Module, rank: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__(unet, rank, generator)
        time: Any = unet.get_submodule("time_embedding")
        width = int(time.linear_2.out_features)
        self.pose_in = nn.Parameter(_normal((width, POSE), POSE**-0.5, generator))
        self.pose_out = nn.Parameter(torch.zeros(width, width))

    def pose(self, c2w: Tensor) -> Tensor:
        """Return embeddings (B, E), like the time embedding, of row-major camera-to-world matrices (B, 16)."""
        return F.linear(F.silu(F.linear(c2w, self.pose_in)), self.pose_out)

    @contextmanager
    def applied(self, unet: nn.Module, c2w: Tensor) -> Iterator[None]:
        """Within a `with` block, apply the LoRA to `unet` for images with camera-to-world matrices `c2w` (B, 16)."""
        time = unet.get_submodule("time_embedding")
        pose = time.register_forward_hook(lambda module, inputs, out: out + self.pose(c2w).to(out.dtype))
        with ExitStack() as stack:
            for handle in (*self.attach(unet), pose):
                stack.enter_context(handle)  # which removes it
            yield


def _add(down: Tensor, up: Tensor, scale: float, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    x, layer = inputs[0].to(down.dtype), cast(Any, module)
    if down.ndim == 2:
        added = F.linear(F.linear(x, down), up)
    else:
        added = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up[..., None, None])
    return out + (scale * added).to(out.dtype)


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Tensor:
    return std * torch.randn(shape, generator=generator)


POSE_DROPOUT = 0.1
"""Probability of training the LoRA without poses."""


class VSD(Distillation):
    """Loss of variational score distillation.

    Its gradient with respect to the latents is (1 - alpha_bar_t) (eps_prior - eps_lora) / B. eps_prior is the guided
    noise of the frozen prior, eps_lora that of the UNet with a LoRA, which is trained on the renders.
    """

    def make_parameters(self, prior: Prior | None, generator: torch.Generator | None) -> None:
        assert prior is not None
        self.unregistered = (prior,)  # frozen: in no checkpoint
        self.lora = PosedLoRA(prior.unet, self.options.rank, generator)

    def forward(
        self,
        latents: Tensor,
        denoise: Denoiser,
        condition: Condition,
        step: int,
        generator: torch.Generator,
        views: RenderedViews | None = None,
    ) -> tuple[Tensor, Logs]:
        """Return the loss of `latents` (B, C, h, w) plus the training loss of the LoRA, a scalar, and metrics to log.

        Only the first term has a gradient with respect to the latents, only the second with respect to the LoRA.
        """
        loss, logs = super().forward(latents, denoise, condition, step, generator, views)
        lora_loss = self.lora_loss(latents.detach().float(), condition, generator)
        return loss + lora_loss, logs | {"loss_lora": lora_loss.detach()}

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        x, t = latents.x, latents.t
        eps_lora = self.schedule.eps_from_output(x, self.lora_output(x, t, condition), t)
        _, sigma = self.schedule.alpha_sigma(t, latents.z)
        return sigma**2 * (latents.eps - eps_lora)

    def lora_loss(self, z: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Compute the training loss of the LoRA on clean latents `z` (B, C, h, w) of the renders: a scalar.

        It is the mean squared error of the UNet's output for `z` with added noise. Each scene gets one uniform t in
        0..T-1. With probability POSE_DROPOUT, zeros replace the camera poses of all images.
        """
        count = len(z) // condition.n_view
        t = torch.randint(self.schedule.T, (count,), generator=generator, device=generator.device)
        t = to_device(t.repeat_interleave(condition.n_view), z.device)
        noise = fresh_noise(z, generator)
        coin = torch.rand((), generator=generator, device=generator.device)
        condition = replace(condition, c2w=None) if float(coin) < POSE_DROPOUT else condition
        output = self.lora_output(self.schedule.add_noise(z, noise, t), t, condition)
        return F.mse_loss(output, self.schedule.target(z, noise, t))

    def lora_output(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the output (B, C, h, w) of the UNet with the LoRA, noise or v, for noisy latents `x` (B, C, h, w).

        The text is `condition.plain_text`; if None, the first of `condition.text`. The poses are `condition.c2w`; if
        None, zeros.
        """
        prior = self.unregistered[0]
        text = condition.text[0][:1] if condition.plain_text is None else condition.plain_text
        poses = x.new_zeros(len(x), 16) if condition.c2w is None else condition.c2w.to(x).flatten(1)
        with self.lora.applied(prior.unet, poses):
            t = t.reshape(-1).expand(len(x))
            kwargs = condition.reference_kwargs(True)
            return prior.network(x, t, per_image(text, len(x)), condition.camera, condition.n_view, **kwargs)
