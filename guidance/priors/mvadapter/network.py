"""A frozen 2D UNet with an adapter: branches beside its self-attention, and the condition guider.

The guider (section 4.1) is a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) on maps of the cameras or of a mesh; its
features are added in the down blocks. Features of a reference image are those of the frozen UNet at t = 0 (4.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers import T2IAdapter
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from threedgen.guidance.attention.decoupled import Branch, branch_processors, decouple
from threedgen.guidance.attention.joined import predict
from threedgen.guidance.guidance import Features

from .form import Form

CHANNELS = 6
FINE = "fine."
"""Prefix of the tensor names of a fine guider."""
RELEASED = Form()


class AdaptedUNet(nn.Module):
    """A frozen UNet with an adapter, whose trainable parameters are those of `new_parts`.

    Attributes:
        factor: pixels per latent and axis.
        multiple: pixels that the sides of images must be multiples of.
        mv_scale, ref_scale: weights of the branches.
    """

    mv_scale, ref_scale = 1.0, 1.0

    def __init__(
        self,
        unet: UNet2DConditionModel,
        factor: int = 8,
        form: Form = RELEASED,
        branches: Sequence[Branch] = ("mv", "ref"),
        guided: bool = True,
        depth: int | None = None,
        downscale: int | None = None,
        fine: bool = False,
    ) -> None:
        """Add branches and guiders to `unet`.

        Args:
            branches: "mv" between views, "ref" to a reference image.
            guided: add a guider, with depth and downscale as in `make_guider`.
            fine: add a fine guider, see `make_fine_guider`.

        Raises:
            ValueError: no guider fits the UNet.
        """
        super().__init__()
        self.unet: Any = cast(Any, unet).requires_grad_(False)
        self.factor, self.form, self.branches = factor, form, tuple(branches)
        decouple(unet, branches, form.layout, form.arrangement)
        self.multiple = factor * guider_stride(unet) if guided else factor
        with unet.device:
            self.guider: Any = make_guider(unet, factor, depth, downscale) if guided else None
        self.fine: nn.Module | None = None
        if guided and fine:
            self.add_fine_guider()

    def add_fine_guider(self) -> None:
        """Add a fine guider with zero output."""
        with self.unet.device:
            self.fine = make_fine_guider(self.unet, self.guider.downscale_factor * self.factor // self.multiple)

    @property
    def new_parts(self) -> nn.ModuleList:
        """Trainable modules."""
        guiders = [guider for guider in (self.guider, self.fine) if guider is not None]
        return nn.ModuleList([*branch_processors(self.unet).values(), *guiders])

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors of the adapter, not copied, under the names of the released ones."""
        named = {
            f"{name}.{inner}": tensor
            for name, processor in branch_processors(self.unet).items()
            for inner, tensor in processor.state_dict().items()
        }
        fine = {} if self.fine is None else {f"{FINE}{name}": each for name, each in self.fine.state_dict().items()}
        return named | ({} if self.guider is None else self.guider.state_dict()) | fine

    def guide(self, control: Tensor, height: int, width: int) -> list[Tensor] | None:
        """Return the guider's features of maps (B, 6, H, W) or (B, 6, 1, 1) in [0, 1] for images of height x width.

        Raises:
            ValueError: the maps have another size.
        """
        return None if self.guider is None else self.guider(self.maps(control, height, width))

    def maps(self, control: Tensor, height: int, width: int) -> Tensor:
        """Resize maps to the guider's input (B, 6, h, w)."""
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"the sides of images should be multiples of {self.multiple} (got {height} x {width})")
        if control.shape[-2:] not in ((1, 1), (height, width)):
            raise ValueError(f"maps of {tuple(control.shape[-2:])} pixels do not fit images of {height} x {width}")
        stride = self.multiple // self.guider.downscale_factor
        maps = control if control.shape[-2:] == (1, 1) else avg_pool2d(control, stride)
        return maps.expand(-1, -1, height // stride, width // stride)

    @contextmanager
    def fine_features(self, control: Tensor | None, height: int, width: int) -> Iterator[None]:
        """Add the fine guider's features to the output of the UNet's first layer, inside the context."""
        if control is None or self.fine is None:
            yield
            return
        added = self.fine(self.maps(control, height, width))
        with self.unet.conv_in.register_forward_hook(lambda _module, _args, out: out + added.to(out.dtype)):
            yield

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        control: Tensor | None = None,
        n_view: int = 1,
        reference: Features | None = None,
    ) -> Tensor:
        """Return the output of the UNet, noise or v.

        A single view without control and reference is that of the base model.

        Args:
            x: latents (B V, C, h, w), the views of an object consecutive.
            t: (B V,) or ().
            text: (B V, L, D).
            control: input of `guide`; None: no guider features.
            reference: features of R images, where R divides B V; None: zeros.

        Raises:
            ValueError: shapes do not fit.
        """
        adapted = n_view > 1 or control is not None or reference is not None
        height, width = (self.factor * side for side in x.shape[-2:])
        control = None if control is None else control.to(x)
        features = None if control is None else self.guide(control, height, width)
        attention: dict[str, Any] = {
            "latent_size": tuple(x.shape[-2:]),
            "use_mv": adapted,
            "use_ref": adapted,
            "mv_scale": self.mv_scale,
            "ref_scale": self.ref_scale,
            "ref_hidden_states": reference,
        }
        with self.fine_features(control, height, width):
            return predict(self.unet, x, t, text, None, n_view, features, self.factor, **attention)

    @torch.no_grad()
    def reference_features(self, latents: Tensor, text: Tensor) -> Features:
        """Return the inputs of its self-attention for R images: clean latents (R, C, h, w), text (R, L, D)."""
        features: dict[str, Tensor] = {}
        t = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        attention: dict[str, Any] = {"use_mv": False, "use_ref": False, "cache_hidden_states": features}
        predict(self.unet, latents, t, text, factor=self.factor, **attention)
        return features


def make_guider(
    unet: UNet2DConditionModel, factor: int = 8, depth: int | None = None, downscale: int | None = None
) -> T2IAdapter:
    """Build a guider with random weights, whose features have the widths and sizes of the blocks of `unet`.

    There are two forms: of Stable Diffusion, where each block halves the side, and of SDXL, whose first two blocks end
    at half the side and whose third and middle blocks have a quarter.

    Args:
        factor: pixels per latent and axis.
        depth: residual blocks per level; None: as many as the UNet.
        downscale: pixels of its maps per feature and axis, a divisor of those of the image; None: the same.

    Raises:
        ValueError: `unet` has another form, or `downscale` is no divisor.
    """
    stride, widths, layers = guider_stride(unet), [*unet.config["block_out_channels"]], unet.config["layers_per_block"]
    kind, channels = ("full_adapter", widths) if stride == 1 else ("full_adapter_xl", [*widths, widths[-1]])
    multiple = factor * stride
    if multiple % (downscale := downscale or multiple):
        raise ValueError(f"its guider has a feature for each {multiple} pixels, which {downscale} does not divide")
    depth = depth or (layers if isinstance(layers, int) else layers[0])
    return T2IAdapter(CHANNELS, channels, depth, downscale, kind)


def make_fine_guider(unet: UNet2DConditionModel, pixels: int) -> nn.Module:
    """Build two layers from maps, `pixels` per latent and axis, to the first features of `unet`; zero at first.

    Released adapters have none: their guider acts from the first attention layer on, at 64 x 64 features; in a small
    UNet these are 8 x 8.
    """
    width = int(unet.config["block_out_channels"][0])
    last = nn.Conv2d(width // 2, width, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(cast(Tensor, last.bias))
    first = nn.Conv2d(CHANNELS * pixels**2, width // 2, 3, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(pixels), first, nn.SiLU(), last)


def guider_stride(unet: UNet2DConditionModel) -> int:
    """Return the latents per feature and axis of a guider's first level. Raises ValueError if no guider fits."""
    strides = _strides(unet)
    if strides == [2**level for level in range(len(strides))]:
        return 1
    if strides == [2, 2, 4]:
        return 2
    raise ValueError(
        f"no guider fits this UNet: its blocks have 1/{', 1/'.join(map(str, strides))} of the side of the latents, "
        "which is neither as in Stable Diffusion nor as in SDXL"
    )


def _strides(unet: Any) -> list[int]:
    """Return latents per feature and axis where diffusers adds features: after attention, else at a block's end."""
    strides, stride = [], 1
    for block in unet.down_blocks:
        after = stride * (2 if block.downsamplers else 1)
        strides.append(stride if getattr(block, "has_cross_attention", False) else after)
        stride = after
    return strides
