"""A frozen diffusers UNet with a correspondence-aware attention block in each of its blocks, inserted by hooks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from .caa import DepthBlock, Encoding, PanoramaBlock, zero
from .geometry import Geometry

Kind = Literal["panorama", "depth"]
Args = tuple[Any, ...]


class ImageEncoding(nn.Module):
    """Two convolutions that adapt features of known views to the channels and the resolution of a UNet block's input.

    Input: features (N, C, h, w) of N views, C = `channels`. Output: (N, `width`, h / `stride`, w / `stride`), to be
    added to the block's input. The weights of the second convolution are zero before training.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, channels, eps=1e-6), nn.GroupNorm(32, width, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)
        zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class MultiviewUNet(nn.Module):
    """Frozen UNet with additional attention: each token attends to the positions in other views that show its 3D point.

    A token is a cell of a view's feature map. `forward(x, t, text, geometry, known_views)` returns the UNet's output
    (B F, C, h, w), noise or v, for noisy latents `x` of B scenes with F views each, timesteps and encoded prompts.
    `geometry`, a `Geometry` made from the cameras, has the positions; if it is None, views do not attend to each other.
    An optional branch encodes known views and adds them to the inputs of the UNet's blocks. Only the added modules
    (`new_blocks`) are trainable. Tensors have the names of the authors' weights, without the prefix `mv_base_model.`.
    """

    condition_conv_in: nn.Conv2d

    def __init__(
        self,
        unet: UNet2DConditionModel,
        kind: Kind = "panorama",
        encoding: Encoding = "reference",
        condition: bool = False,
        convolution: bool = True,
    ) -> None:
        """Freeze `unet` and add attention between views to each of its blocks, without effect until trained.

        Args:
            kind: "panorama": views from one position; "depth": posed views with depth.
            encoding: positional encoding of the relation between a token and a position in another view. For
                "panorama", the relation is the displacement between them, in tokens; for "depth", the difference of
                their depths. Frequencies, in radians per token or per unit of length, are 1 up to very high values in
                "reference", the encoding of the authors' weights, and 1/4 to 64 in "capped".
            condition: whether to add a branch that encodes known views.
            convolution: for kind="depth", whether to add convolutions after each attention, as in the authors' weights.
        """
        super().__init__()
        self.unet: Any = unet
        self.unet.requires_grad_(False)
        self.kind, self.encoding, self.has_condition = kind, encoding, condition
        widths = list(self.unet.config["block_out_channels"])
        block: Callable[[int, Encoding], nn.Module] = PanoramaBlock
        if kind == "depth":
            block = partial(DepthBlock, convolution=convolution)
        self.cp_blocks_encoder = nn.ModuleList([block(width, encoding) for width in widths])
        self.cp_blocks_mid = block(widths[-1], encoding)
        self.cp_blocks_decoder = nn.ModuleList([block(width, encoding) for width in reversed(widths)])
        if condition:
            self._add_condition(widths)

    def _add_condition(self, widths: list[int]) -> None:
        down = [widths[0], *widths[:-1]]  # input channels of the UNet's blocks
        up = [widths[-1], *widths[:0:-1]]
        strides = [2**level for level in range(len(widths))]
        given = self.unet.config["out_channels"] + 1  # a clean latent, and 1 if it is given
        self.condition_conv_in = nn.Conv2d(given, widths[0], 3, padding=1)
        self.condition_downblocks, self.condition_upblocks = (
            nn.ModuleList([ImageEncoding(widths[0], width, stride) for width, stride in zip(into, by, strict=True)])
            for into, by in ((down, strides), (up, strides[::-1]))
        )

    @property
    def new_blocks(self) -> dict[str, nn.Module]:
        return {name: child for name, child in self.named_children() if name != "unet"}

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, geometry: Geometry | None = None, known_views: Tensor | None = None
    ) -> Tensor:
        """Return the output of the UNet (B F, C, h, w), noise or v, for B scenes with F views each.

        Args:
            x: noisy latents and extra input channels (B F, C + E, h, w); the views of a scene are consecutive.
            t: timesteps (B F,) or ().
            text: encoded prompts (B F, L, D).
            geometry: corresponding positions of the F views. If it is None or F = 1, views do not attend to each other.
            known_views: clean latents, then mask (1 for known views), (B F, C + 1, h, w), from
                `inputs.given_condition`; None: no known views.
        """
        with ExitStack() as hooks:
            if geometry is not None and geometry.n_view > 1:
                hooks.enter_context(self._blocks(geometry))
            if known_views is not None:
                hooks.enter_context(self._conditioned(known_views))
            return self.unet(x, t, text, return_dict=False)[0]

    @contextmanager
    def _blocks(self, geometry: Geometry) -> Iterator[None]:
        # new blocks run before the down- or upsampler of a UNet block, or at the end of a block without one; in the
        # middle block, for panoramas, before the attention
        with ExitStack() as hooks:

            def insert(block: nn.Module, new: nn.Module, inner: str) -> None:
                def apply(x: Tensor) -> Tensor:
                    return new(x, geometry.keys(x.shape[-2], x.shape[-1], x.device), geometry.n_view)

                def before(_module: nn.Module, args: Args) -> Args:
                    return (apply(args[0]), *args[1:])

                def after(_module: nn.Module, _args: Args, out: Tensor | Args) -> Tensor | Args:
                    return (apply(out[0]), *out[1:]) if isinstance(out, tuple) else apply(out)

                next_layers = getattr(block, inner, None)
                hook = next_layers[0].register_forward_pre_hook(before) if next_layers else None
                hooks.callback((hook or block.register_forward_hook(after)).remove)

            for block, new in zip(self.unet.down_blocks, self.cp_blocks_encoder, strict=True):
                insert(block, new, "downsamplers")
            insert(self.unet.mid_block, self.cp_blocks_mid, "attentions" if self.kind == "panorama" else "")
            for block, new in zip(self.unet.up_blocks, self.cp_blocks_decoder, strict=True):
                insert(block, new, "upsamplers")
            yield

    @contextmanager
    def _conditioned(self, known_views: Tensor) -> Iterator[None]:
        # adds the encoded known views (B F, C + 1, h, w) to the inputs of the UNet's blocks
        encoded = self.condition_conv_in(known_views)
        blocks = [*self.unet.down_blocks, *self.unet.up_blocks]
        encoders = [*self.condition_downblocks, *self.condition_upblocks]
        last = cast(ImageEncoding, self.condition_downblocks[-1])
        if last.conv2.out_channels == self.unet.config["block_out_channels"][-1]:
            blocks, encoders = [*blocks, self.unet.mid_block], [*encoders, last]
        with ExitStack() as hooks:
            for block, encoder in zip(blocks, encoders, strict=True):

                def add(
                    _module: nn.Module, args: Args, kwargs: dict[str, Tensor], encoder: nn.Module = encoder
                ) -> None:
                    # in place, as in the reference: the tensor is also a skip connection
                    (args[0] if args else kwargs["hidden_states"]).add_(encoder(encoded))

                hooks.callback(block.register_forward_pre_hook(add, with_kwargs=True).remove)
            yield
