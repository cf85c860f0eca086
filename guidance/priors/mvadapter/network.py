"""MV-Adapter's network: a frozen 2D UNet with additional attention layers and a condition guider.

The condition guider (section 4.1) is a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): it maps camera rays or mesh
geometry to features that are added to the UNet. For a reference image, the frozen UNet runs on its clean
latents at t = 0, and the new attention attends to the inputs that the self-attention layers then have (section 4.2).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import torch
from diffusers import T2IAdapter
from diffusers.models import UNet2DConditionModel
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from threedgen.config.errors import ConfigError, short
from threedgen.guidance.attention.decoupled import Branch, branch_processors, decouple
from threedgen.guidance.attention.joined import unet_output
from threedgen.guidance.guidance import Features
from threedgen.guidance.options import Arrangement, Control, Layout, Shift, Timestep

CHANNELS = 6
FINE = "fine."
"""Prefix of the tensor names of a fine guider (`make_fine_guider`) in files."""


@dataclass(frozen=True)
class AdapterSettings:
    """Training settings of an MV-Adapter, stored as metadata of its file.

    The defaults are the settings of the adapters for camera rays that MV-Adapter's authors published.

    Attributes:
        layout: tokens that a token attends to in the added attention between views. "row": those in its image row, in
            all views. "rowcol", for six views of a mesh, has two groups of views:

            - Tokens of front, right, back and left attend to those in their image row, in these four views.
            - Tokens of front, back, top and bottom attend to those in their image column, in these four views. The
              front view is first mirrored left-right, because a direction that points right in back, top and bottom
              points left in it.

            Front and back are in both groups; their two outputs are averaged.
        arrangement: whether the added attention is "parallel" to the self-attention or "serial", after it.
        control: input that describes the views, "rays" of the cameras or "geometry" of a mesh.
        shift: factor by which the signal-to-noise ratio of the 2D model's noise schedule is divided.
        shift_mode: "default": the factor is `shift` at all timesteps; "interpolated": it grows from 1 at timestep 0
            (almost clean) to `shift` at the last timestep (almost pure noise).
        anywhere: fraction of training objects rendered at random azimuths and at elevations from 0 to 30 degrees; the
            others are rendered at fixed views.
        fov: vertical field of view of the cameras in degrees; 0: orthographic.
        timestep: timestep that the 2D model receives. "same": that of the shifted schedule; "matched": the timestep at
            which the 2D model's own schedule has the same signal-to-noise ratio.
    """

    layout: Layout = "row"
    arrangement: Arrangement = "parallel"
    control: Control = "rays"
    shift: float = Field(default=8.0, ge=1, le=1000, allow_inf_nan=False)
    shift_mode: Shift = "interpolated"
    anywhere: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    fov: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    timestep: Timestep = "same"

    @classmethod
    def from_card(cls, card: Mapping[str, str], **overrides: object) -> "AdapterSettings":
        """Read the settings from the metadata `card` of an adapter's file.

        `card` and `overrides` map attribute names to values. Values in `overrides` that are not None replace those of
        the file. An attribute that is in neither gets its default. The default of `layout` (which tokens attend to each
        other) is "rowcol" if `control` is "geometry" (maps of a mesh), else "row". Raises ConfigError for an invalid
        value.
        """
        settings: dict[str, object] = {field.name: card[field.name] for field in fields(cls) if field.name in card}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        settings.setdefault("layout", "rowcol" if settings.get("control") == "geometry" else "row")
        try:
            return cls(**settings)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"the setting {first['loc'][0]}={short(first['input'], 40)} of the adapter's file is unknown"
            raise ConfigError(f"{problem}: {first['msg']}", "adapter") from None

    @property
    def card(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


RELEASED = AdapterSettings()


class AdaptedUNet(nn.Module):
    """Frozen UNet of a 2D model with an MV-Adapter: added attention layers, and guiders for cameras or a mesh.

    `forward` maps noisy latents (B V, C, h, w) of V views of B objects to the UNet's output of the same shape. Its
    other inputs are:

    - timesteps and encoded prompts of the views
    - maps of camera rays or of mesh geometry, as `settings.control` says. The guiders, convolutional networks, turn
      them into features that are added to those of the UNet.
    - features of a reference image, from `reference_features`. The added layers attend to them, and to the other views
      of the object.

    Only the modules in `new_parts` are trainable.

    Attributes:
        factor: image pixels per latent pixel along each axis.
        size_multiple: number of pixels by which height and width of images must be divisible.
        mv_scale, ref_scale: weights of the attention to other views and to the reference image; 1: as in training.
    """

    mv_scale, ref_scale = 1.0, 1.0

    def __init__(
        self,
        unet: UNet2DConditionModel,
        factor: int = 8,
        settings: AdapterSettings = RELEASED,
        branches: Sequence[Branch] = ("mv", "ref"),
        guided: bool = True,
        depth: int | None = None,
        downscale: int | None = None,
        fine: bool = False,
    ) -> None:
        """Add attention layers and guiders to `unet`, in place.

        Guiders are convolutional networks on maps of camera rays or mesh geometry. They are untrained.

        Args:
            factor: image pixels per latent pixel along each axis.
            settings: training settings of the adapter, such as which tokens attend to each other.
            branches: kinds of added attention: "mv" to other views, "ref" to a reference image.
            guided: whether to add a condition guider, whose features are added to those of the UNet's blocks.
            depth: residual blocks per level of the condition guider; None: the layers per block of the UNet.
            downscale: factor by which the sides of the condition guider's first feature map are smaller than those of
                the input maps. The feature map has a fixed size, so this sets the size of the input maps; None: that of
                the image.
            fine: whether to add, with a condition guider, a fine guider: two convolutions on the same maps, whose
                output, at the resolution of the latents, is added to that of the UNet's first layer.
        """
        super().__init__()
        self.unet: Any = unet
        self.unet.requires_grad_(False)
        self.factor, self.settings, self.branches = factor, settings, tuple(branches)
        decouple(unet, branches, settings.layout, settings.arrangement)
        self.size_multiple = factor * guider_stride(unet) if guided else factor
        with unet.device:
            self.guider: Any = make_guider(unet, factor, depth, downscale) if guided else None
        self.fine: nn.Module | None = None
        if guided and fine:
            self.add_fine_guider()

    def add_fine_guider(self) -> None:
        """Set the attribute `fine` to an untrained fine guider: convolutions on maps of camera rays or mesh geometry.

        Its output, zero until it is trained, is added to that of the UNet's first layer (see `make_fine_guider`).
        """
        with self.unet.device:
            self.fine = make_fine_guider(self.unet, self.guider.downscale_factor * self.factor // self.size_multiple)

    @property
    def new_parts(self) -> nn.ModuleList:
        """The trainable modules: added attention layers and guiders."""
        guiders = [guider for guider in (self.guider, self.fine) if guider is not None]
        return nn.ModuleList([*branch_processors(self.unet).values(), *guiders])

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the adapter's tensors, not copied, by their names in the files of MV-Adapter's authors."""
        named = {
            f"{name}.{inner}": tensor
            for name, processor in branch_processors(self.unet).items()
            for inner, tensor in processor.state_dict().items()
        }
        fine = {} if self.fine is None else {f"{FINE}{name}": each for name, each in self.fine.state_dict().items()}
        return named | ({} if self.guider is None else self.guider.state_dict()) | fine

    def guide(self, control: Tensor, height: int, width: int) -> list[Tensor] | None:
        """Compute the features that the condition guider adds to the UNet: (B, C, h, w) per UNet level.

        `control` are maps in [0, 1] of camera rays or mesh geometry for images of height x width pixels,
        (B, 6, height, width), or (B, 6, 1, 1) if they are equal for all pixels. Maps of another size are resized.
        Returns None for an adapter without a guider.
        """
        return None if self.guider is None else self.guider(self.resize_maps(control, height, width))

    def resize_maps(self, control: Tensor, height: int, width: int) -> Tensor:
        """Resize maps of camera rays or mesh geometry to the size (h, w) that the condition guider takes: (B, 6, h, w).

        For images of height x width pixels, h = height / s and w = width / s with a fixed integer s, given by UNet and
        guider. `control` (B, 6, height, width) is averaged over blocks of s x s pixels. Maps of another size, as in the
        first pass of coarse-to-fine sampling, are first resized to height x width. If all pixels of an image have the
        same values, as the rays of an orthographic camera, `control` is (B, 6, 1, 1) and is repeated.
        """
        stride = self.size_multiple // self.guider.downscale_factor
        if control.shape[-2:] != (1, 1):
            control = avg_pool2d(interpolate(control, (height, width), mode="nearest"), stride)
        return control.expand(-1, -1, height // stride, width // stride)

    @contextmanager
    def fine_features(self, control: Tensor | None, height: int, width: int) -> Iterator[None]:
        if control is None or self.fine is None:
            yield
            return
        added = self.fine(self.resize_maps(control, height, width))
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
        """Return the output of the UNet (B V, C, h, w), noise or v, for B objects with V views each.

        For a single view without control and reference, the result equals the output of the unchanged 2D model.

        Args:
            x: noisy latents (B V, C, h, w); the views of an object are consecutive.
            t: timesteps (B V,) or ().
            text: encoded prompts (B V, L, D).
            control: maps in [0, 1] of camera rays or mesh geometry for the condition guider, (B V, 6, H, W), or
                (B V, 6, 1, 1) if they are equal for all pixels of a view; None: no guider features.
            n_view: number V of views per object.
            reference: features of R images from `reference_features`, where R divides B V. Each image serves B V / R
                consecutive views. None: the attention to a reference image gets zeros.
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
            return unet_output(self.unet, x, t, text, None, n_view, features, self.factor, **attention)

    @torch.no_grad()
    def reference_features(self, latents: Tensor, text: Tensor) -> Features:
        """Return features of R reference images for `forward`: inputs of the UNet's self-attention layers at t = 0.

        They are (R, L', C), with the L' tokens and C channels of a layer, by layer name. `latents` are the clean
        latents of the images, (R, C, h, w), and `text` encoded prompts (R, L, D). The adapter is not applied.
        """
        features: dict[str, Tensor] = {}
        t = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        attention: dict[str, Any] = {"use_mv": False, "use_ref": False, "cache_hidden_states": features}
        unet_output(self.unet, latents, t, text, factor=self.factor, **attention)
        return features


def make_guider(
    unet: UNet2DConditionModel, factor: int = 8, depth: int | None = None, downscale: int | None = None
) -> T2IAdapter:
    """Build a condition guider with random weights: a T2I-Adapter whose features fit the blocks of `unet`.

    Its input are maps (B, 6, H, W) of camera rays, or of positions and normals of a mesh. It returns a list of feature
    maps, which are added to those of the UNet. The first one is the largest: each of its cells covers N x N image
    pixels. N is `factor` for Stable Diffusion 2.1 (8), and twice that for SDXL (16), whose first feature map has half
    the resolution of the latents.

    Args:
        factor: image pixels per latent pixel along each axis.
        depth: residual blocks per level; None: the layers per block of the UNet.
        downscale: number of input pixels per cell of the first feature map, along each axis. None: N, for input maps of
            the size of the image. A smaller value is for smaller input maps: with N / 2, they have half the height and
            width of the image.

    Raises:
        ValueError: `downscale` does not divide N.
    """
    stride, widths, layers = guider_stride(unet), [*unet.config["block_out_channels"]], unet.config["layers_per_block"]
    kind, channels = ("full_adapter", widths) if stride == 1 else ("full_adapter_xl", [*widths, widths[-1]])
    multiple = factor * stride
    if multiple % (downscale := downscale or multiple):
        raise ValueError(f"its guider has a feature for each {multiple} pixels, which {downscale} does not divide")
    depth = depth or (layers if isinstance(layers, int) else layers[0])
    return T2IAdapter(CHANNELS, channels, depth, downscale, kind)


def make_fine_guider(unet: UNet2DConditionModel, pixels: int) -> nn.Module:
    """Build a fine guider: two convolutions, whose output is added to the output of the UNet's first layer.

    Its input are the same maps of camera rays or mesh geometry that the condition guider takes, (B, 6, p h, p w) for
    latents of h x w pixels. p = `pixels` is the number of map pixels per latent pixel along each axis. The output of
    the fine guider, (B, C, h, w), is zero before training. It has the resolution of the latents. The features of the
    condition guider may be coarser: 8 x 8 cells or fewer for toybox-base, a small UNet for latents of 16 x 16 pixels.
    """
    width = int(unet.config["block_out_channels"][0])
    last = nn.Conv2d(width // 2, width, 3, padding=1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    first = nn.Conv2d(CHANNELS * pixels**2, width // 2, 3, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(pixels), first, nn.SiLU(), last)


def guider_stride(unet: UNet2DConditionModel) -> int:
    """Return how many times smaller than the latents the condition guider's first feature map is, per side: 1 or 2.

    The condition guider computes feature maps of camera rays or mesh geometry, which are added to those of the UNet, so
    their sizes must be equal. The result is 1 if the first down block of `unet` has attention, as in Stable Diffusion
    2.1, and 2 if it has none, as in SDXL. The reason: diffusers adds the first map before the downsampling of that
    block in the first case, after it in the second.
    """
    return 1 if hasattr(unet.down_blocks[0], "attentions") else 2
