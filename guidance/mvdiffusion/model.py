"""MVDiffusion (Tang et al. 2023, arXiv 2307.01097): a 2D model that draws the views of a scene together.

model = MVDiffusion.load("stabilityai/stable-diffusion-2-base", camera=False).with_views("pano.ckpt")
views = model.draw(["a kitchen"] * 8, geometry, (512, 512))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import keyed
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.warp import of_cameras
from threedgen.guidance.diffusion import Conditions, Generators, guided
from threedgen.guidance.draft import ALONE, Begun, Size, Synchronised, before_each, check_sides, ddim, in_both_sizes
from threedgen.guidance.multiview.joined import predict
from threedgen.guidance.options import MVDiffusionConfig
from threedgen.guidance.priors.mvdream import load_as
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.guidance.weights.files import read_card, read_tensors
from threedgen.guidance.weights.plugins import locate

from .geometry import DepthGeometry, Geometry, Neighbours, PanoramaGeometry
from .inputs import Convention, Extra, extra_kind, given_latents, mask_channels, masked_pictures, unknown_channels
from .unet import MultiviewUNet
from .weights import FORMAT, convert_released, differing

logger = logging.getLogger(__name__)


def build(options: MVDiffusionConfig, device: torch.device | str = "cpu") -> MVDiffusion:
    """The model that a config describes. Raises ConfigError."""
    model: MVDiffusion = load_as(MVDiffusion, options, device, camera=False)
    model.hold, model.guide_views = options.hold, options.guide_views
    if options.blocks is not None:
        model.with_views(options.blocks).compare_learnt(
            k=options.k, neighbours=options.neighbours, overlap=options.overlap
        )
    return model


Known = Callable[[Size], tuple[Tensor | None, Tensor | None]]
"""What is known of F views, for pictures of a size: extra (F,E,h,w) and condition (F,C+1,h,w); None: nothing."""


class CorrespondenceOptions(Protocol):
    """What a config says of it: see ``MVDiffusionConfig``."""

    @property
    def k(self) -> int: ...
    @property
    def neighbours(self) -> Neighbours: ...
    @property
    def overlap(self) -> float: ...


class MVDiffusion(StableDiffusion):
    """A Stable Diffusion whose UNet can see the views of a scene: ``multiview``, None before ``with_views``.

    extra: what the UNet is told of each pixel beside the noisy latents; see ``inputs``.  hold: of what is given
    the noisy latents are those of the picture in each step, so that it stays as it is and others can see it.
    """

    multiview: MultiviewUNet | None = None
    hold: bool = False
    learnt: Mapping[str, str] = MappingProxyType({})
    """Options by which its blocks learnt, as far as they say it."""

    @staticmethod
    def extra_channels(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
        latents = int(vae.config["latent_channels"])
        try:
            extra_kind(extra := unet.config["in_channels"] - latents, latents)
        except ValueError as error:
            raise ConfigError(str(error), "weights") from None
        return extra

    @property
    def extra(self) -> Extra:
        channels = self.latent_shape[0]
        return extra_kind(self.unet.config["in_channels"] - channels, channels)

    def check_size(self, size: Size, keys: tuple[str, str]) -> None:
        """Raises ConfigError for pictures (H,W) that cannot be drawn; ``keys``: the options of height and width."""
        check_sides(size, self.unit, self.draft, keys)
        if self.multiview is not None and self.multiview.kind == "depth" and self.multiview.encoding == "reference":
            self.check_pairs(size, self.draft is not None, keys[1])

    def check_pairs(self, size: Size, halved: bool, key: str) -> None:
        """Raises ConfigError if the smallest map of pictures (H,W), or of those that are ``halved``, has an odd number
        of tokens, of which the reference's encoding of depth makes pairs: see ``PositionalEncoding``."""
        (height, width), token = size, self.unit * (2 if halved else 1)
        if height // token * (width // token) % 2:
            raise ConfigError(
                "these weights encode depth in pairs of tokens, and the smallest map of pictures of "
                f"{height} x {width} pixels{', drawn at half the size too,' if halved else ''} has an odd number; "
                f"try a width of {(width // token + 1) * token}",
                key,
            )

    def with_views(self, blocks: str | Path) -> Self:
        """Puts the blocks of a file around the UNet, which may get other weights by them. Raises ConfigError."""
        path = locate("blocks", str(blocks))
        with keyed("blocks"):
            tensors, self.learnt = read_tensors(path), read_card(path, FORMAT)
            found = convert_released(tensors, differing(self.unet, tensors))
        if found.ignored:
            parts = ", ".join(f"{part} ({count})" for part, count in found.ignored_parts.items())
            logger.warning("%s: tensors that have no place here are not used: %s", blocks, parts)
        return self.with_network(found.network)

    def with_network(self, network: MultiviewUNet) -> Self:
        """Sees the views of a scene by this network from now on."""
        self.unet, self.multiview = network.unet, network
        return self.to(self.device)

    def compare_learnt(self, **chosen: object) -> None:
        """Warns of options by which the blocks did not learn."""
        for name, value in chosen.items():
            if self.learnt.get(name, str(value)) != str(value):
                logger.warning("%s=%s: the attention between views learnt with %s", name, value, self.learnt[name])

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return super().networks | ({} if self.multiview is None else {"multiview": self.multiview})

    def predict(self, x: Tensor, t: Tensor, text: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """A single picture about which nothing is known."""
        return super().predict(torch.cat([x, unknown_channels(self.extra, x)], 1), t, text)

    def masked_extra(self, views: Tensor, given: Tensor, convention: Convention) -> Tensor:
        """What a model of masks is told (F,1+C,h,w) of views (F,H,W,3) in [0,1], of which what is ``given`` is known:
        whole views (F,) or pixels (F,H,W), bool."""
        latents = self.encode_views(masked_pictures(views, given, convention))
        return mask_channels(latents, given.to(latents.device), convention)

    def geometry(self, at: Cameras, depth: Tensor | None, options: CorrespondenceOptions) -> Geometry:
        """How views correspond: posed ones with ``depth`` (F,H,W), else those of a panorama."""
        K, c2w = of_cameras(at)
        if depth is None:
            return PanoramaGeometry(K, c2w[:, :3, :3], (at.height, at.width), options.k, options.neighbours)
        released = self.multiview is None or self.multiview.encoding == "reference"
        return DepthGeometry(depth, c2w, K, options.overlap, released)

    def denoise_views(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        geometry: Geometry | None = None,
        extra: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The noise in the latents (B F,C,h,w) of scenes of F views, at time steps (B F,), for text (B F,L,D), float32.

        geometry: None: each picture by itself, which is the base model.  extra: (B F,E,h,w).  condition: see
        ``MultiviewUNet.forward``.
        """
        return self.schedule.eps_from_output(x, self.output(x, t, text, geometry, extra, condition), t)

    def output(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        geometry: Geometry | None = None,
        extra: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """What the network itself says, float32: the noise or v; see ``denoise_views``."""
        extra = unknown_channels(self.extra, x) if extra is None else extra
        known = torch.cat([x.float(), extra.float()], 1)
        with self.autocast():
            if self.multiview is None:
                return predict(self.unet, known, t, text).float()
            return self.multiview(known, t, text, geometry, condition).float()

    @property
    def branch(self) -> bool:
        """Has it a branch for given pictures?"""
        return self.multiview is None or self.multiview.has_condition

    def held(self, extra: Tensor | None, condition: Tensor | None, mask: Convention) -> tuple[Tensor, Tensor] | None:
        """Where latents stay as they are given (F,1,h,w), and what is given (F,C,h,w); None: nothing does. A network
        without a branch for given pictures sees them in no other way."""
        if condition is not None and (self.hold or not self.branch):
            return condition[:, -1:], condition[:, :-1]
        if self.hold and self.extra == "mask" and extra is not None:
            return given_latents(extra, mask)
        return None

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        geometry: Geometry | None,
        size: Size,
        known: Known = lambda size: (None, None),
        steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str = "",
        generator: Generators = None,
        on_step: Callable[[], None] = lambda: None,
        eta: float = 0.0,
        mask: Convention = "code",
        synchronised: Synchronised = ALONE,
    ) -> Tensor:
        """Samples the F views of a scene, one prompt each, by DDIM -> (F,H,W,3) in [0,1], on the CPU.

        size: (H,W), multiples of ``unit``.  known: what is known, the same with and without the prompt.  on_step:
        called before each step; may raise.  eta: see ``ddim_sigma``.  mask: how a mask says what is given, for
        ``hold``.  synchronised: see ``in_both_sizes``.
        """
        count, text = len(prompts), self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])

        def draw(size: Size, start: Tensor, begun: Begun | None) -> Tensor:
            extra, condition = (None if part is None else part.to(self.device) for part in known(size))
            held = self.held(extra, condition, mask)
            condition = condition if self.branch else None

            def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
                said, where_from = [], geometry if n_view == count else None
                for z, times, words in zip(*(part.split(len(start)) for part in (x, t, text)), strict=True):
                    if held is not None:
                        where, given = held
                        z = torch.where(where > 0, self.schedule.add_noise(given, start, times), z)
                    said.append(self.denoise_views(z, times, words, where_from, extra, condition))
                return torch.cat(said)

            given = Conditions(text, n_view=count, alone=self.guide_views)
            how = (self.schedule, steps, eta, generator, begun, before_each(on_step))
            z = ddim(guided(denoise, guidance_scale), start, given, *how)
            return z if held is None else torch.where(held[0] > 0, held[1], z)

        return in_both_sizes(self, count, size, draw, generator, synchronised)
