"""A frozen 2D UNet that draws several views: branches beside its self-attention, and the condition guider.

The guider (section 4.1) is a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) on maps of the cameras or of a mesh, whose
features are added in the blocks on the way down. Features of a reference picture are those of the frozen UNet itself at
t = 0 (section 4.2).
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

from threedgen.guidance.guidance import Features
from threedgen.guidance.multiview.decoupled import Branch, branch_processors, decouple
from threedgen.guidance.multiview.joined import predict

from .form import Form

CHANNELS = 6
FINE = "fine."
"""What names of the tensors of a fine guider begin with."""
RELEASED = Form()


class AdaptedUNet(nn.Module):
    """A UNet, frozen, with an adapter.

    factor: pixels per latent and axis.  branches: "mv" between views, "ref" to a reference picture.  guided: with a
    guider, see ``make_guider``.  fine: with one more, see ``make_fine_guider``.  Trainable are the parameters of
    ``new_parts``; ``mv_scale`` and ``ref_scale`` weigh the branches.  multiple: pixels of which the sides of pictures
    have to be multiples.
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
        """Raises ValueError for a UNet to which no guider fits."""
        super().__init__()
        self.unet: Any = cast(Any, unet).requires_grad_(False)
        self.factor, self.form, self.branches = factor, form, tuple(branches)
        decouple(unet, branches, form.layout, form.arrangement)
        self.multiple = factor * guider_stride(unet) if guided else factor
        with unet.device:
            self.guider: Any = make_guider(unet, factor, depth, downscale) if guided else None
        self.fine: nn.Module | None = None
        if guided and fine:
            self.refine()

    def refine(self) -> None:
        """Adds the fine guider, which changes nothing yet."""
        with self.unet.device:
            self.fine = make_fine_guider(self.unet, self.guider.downscale_factor * self.factor // self.multiple)

    @property
    def new_parts(self) -> nn.ModuleList:
        """What is trained."""
        guiders = [guider for guider in (self.guider, self.fine) if guider is not None]
        return nn.ModuleList([*branch_processors(self.unet).values(), *guiders])

    def adapter_state(self) -> dict[str, Tensor]:
        """The tensors of the adapter, not copied, under the names of the released ones."""
        named = {
            f"{name}.{inner}": tensor
            for name, processor in branch_processors(self.unet).items()
            for inner, tensor in processor.state_dict().items()
        }
        fine = {} if self.fine is None else {f"{FINE}{name}": each for name, each in self.fine.state_dict().items()}
        return named | ({} if self.guider is None else self.guider.state_dict()) | fine

    def guide(self, control: Tensor, height: int, width: int) -> list[Tensor] | None:
        """The guider's features for maps (B,6,H,W) in [0,1], or (B,6,1,1) if all pixels share them, of pictures of
        ``height`` x ``width``. Raises ValueError for maps of other sizes."""
        return None if self.guider is None else self.guider(self.maps(control, height, width))

    def maps(self, control: Tensor, height: int, width: int) -> Tensor:
        """The same maps (B,6,h,w), of as many pixels as the guider sees."""
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"the sides of pictures should be multiples of {self.multiple} (got {height} x {width})")
        if control.shape[-2:] not in ((1, 1), (height, width)):
            raise ValueError(f"maps of {tuple(control.shape[-2:])} pixels are not of pictures of {height} x {width}")
        less = self.multiple // self.guider.downscale_factor
        maps = control if control.shape[-2:] == (1, 1) else avg_pool2d(control, less)
        return maps.expand(-1, -1, height // less, width // less)

    @contextmanager
    def refined(self, control: Tensor | None, height: int, width: int) -> Iterator[None]:
        """Inside, what the fine guider makes of maps is added to what the first layer of the UNet says."""
        if control is None or self.fine is None:
            yield
            return
        added = self.fine(self.maps(control, height, width))
        with self.unet.conv_in.register_forward_hook(lambda _module, _given, out: out + added.to(out.dtype)):
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
        """What the UNet says of latents: the noise or v.

        Args:
            x: (B V,C,h,w), the views of an object consecutive.  t: (B V,) or ().  text: (B V,L,D).
            control: what the guider is shown, see ``guide``; None: nothing.
            reference: features of R pictures, where R divides B V; None: of none, which is as of zeros.

        One view of which nothing else is known is the base model's. Raises ValueError for what does not fit together.
        """
        adapted = n_view > 1 or control is not None or reference is not None
        height, width = (self.factor * side for side in x.shape[-2:])
        control = None if control is None else control.to(x)
        features = None if control is None else self.guide(control, height, width)
        views = {"latent_size": tuple(x.shape[-2:]), "use_mv": adapted, "use_ref": adapted}
        scales = {"mv_scale": self.mv_scale, "ref_scale": self.ref_scale}
        told: Any = views | scales | {"ref_hidden_states": reference}
        with self.refined(control, height, width):
            return predict(self.unet, x, t, text, None, n_view, features, self.factor, **told)

    @torch.no_grad()
    def reference_features(self, latents: Tensor, text: Tensor) -> Features:
        """What its self-attention sees of R pictures by their clean latents (R,C,h,w), with text (R,L,D)."""
        kept: dict[str, Tensor] = {}
        t = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        told: Any = {"use_mv": False, "use_ref": False, "cache_hidden_states": kept}
        predict(self.unet, latents, t, text, factor=self.factor, **told)
        return kept


def make_guider(
    unet: UNet2DConditionModel, factor: int = 8, depth: int | None = None, downscale: int | None = None
) -> T2IAdapter:
    """A guider with random weights, whose features have the widths and sizes of the blocks of ``unet``.

    There are two forms: of Stable Diffusion, where each block has half the side of the one before, and of SDXL, whose
    first block has no attention and ends at half the side, as the second has, and whose third and middle blocks have a
    quarter. factor: pixels per latent and axis.  depth: residual blocks per level, None: as many as the UNet.
    downscale: pixels of its maps per feature and axis; None: those of the pictures, else a divisor of it, and maps of
    fewer pixels are seen by fewer weights. Raises ValueError for other networks, and other divisors.
    """
    stride, widths, layers = guider_stride(unet), [*unet.config["block_out_channels"]], unet.config["layers_per_block"]
    kind, channels = ("full_adapter", widths) if stride == 1 else ("full_adapter_xl", [*widths, widths[-1]])
    multiple = factor * stride
    if multiple % (downscale := downscale or multiple):
        raise ValueError(f"its guider has a feature for each {multiple} pixels, which {downscale} does not divide")
    depth = depth or (layers if isinstance(layers, int) else layers[0])
    guider: Any = T2IAdapter(CHANNELS, channels, depth, downscale, kind)
    return guider


def make_fine_guider(unet: UNet2DConditionModel, pixels: int) -> nn.Module:
    """Two layers that make features of maps, ``pixels`` of them for a latent and axis, of the width and size of the
    first layer of ``unet``; zero at first.

    Released adapters have none: their guider speaks from the first attention on, which sees 64 x 64 features there,
    and in a small UNet 8 x 8.
    """
    width = int(unet.config["block_out_channels"][0])
    last = nn.Conv2d(width // 2, width, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(cast(Tensor, last.bias))
    first = nn.Conv2d(CHANNELS * pixels**2, width // 2, 3, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(pixels), first, nn.SiLU(), last)


def guider_stride(unet: UNet2DConditionModel) -> int:
    """Latents per axis of the first feature of a guider. Raises ValueError for networks for which there is none."""
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
    """Latents per feature and axis where diffusers adds features: behind the attention of a block, else at its end."""
    strides, stride = [], 1
    for block in unet.down_blocks:
        after = stride * (2 if block.downsamplers else 1)
        strides.append(stride if getattr(block, "has_cross_attention", False) else after)
        stride = after
    return strides
