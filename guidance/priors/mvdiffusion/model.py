"""MVDiffusion (Tang et al. 2023, arXiv 2307.01097): a 2D model that samples the views of a scene together.

model = MVDiffusion.load("stabilityai/stable-diffusion-2-base").with_blocks("pano.ckpt")
views = model.sample_views(["a kitchen"] * 8, geometry, (512, 512))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, Self

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import keyed
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.warp import to_opencv
from threedgen.guidance.attention.joined import predict
from threedgen.guidance.coarse_to_fine import NO_SYNC, Size, ViewSync, check_image_size, sample_images
from threedgen.guidance.guidance import Condition, guided
from threedgen.guidance.options import MVDiffusionConfig
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion, load_prior
from threedgen.guidance.sampling import Generators, InitLatents, before_steps, sample_latents
from threedgen.guidance.weights.files import read_card, read_tensors
from threedgen.guidance.weights.plugins import locate

from .geometry import DepthGeometry, Geometry, Neighbours, PanoramaGeometry
from .inputs import Convention, Extra, extra_kind, given_latents, mask_channels, masked_images, unknown_channels
from .unet import MultiviewUNet
from .weights import FORMAT, convert_released, with_difference

logger = logging.getLogger(__name__)


def build(options: MVDiffusionConfig, device: torch.device | str = "cpu") -> MVDiffusion:
    """Build the model of a config. Raises ConfigError."""
    model: MVDiffusion = load_prior(MVDiffusion, options, device)
    model.hold, model.guide_views = options.hold, options.guide_views
    if options.blocks is not None:
        model.with_blocks(options.blocks)
        model.check_trained_options(k=options.k, neighbours=options.neighbours, overlap=options.overlap)
    return model


ImageConditions = Callable[[Size], tuple[Tensor | None, Tensor | None]]
"""Conditions of F views at an image size: extra channels (F, E, h, w) and condition maps (F, C + 1, h, w), or None."""


class CorrespondenceOptions(Protocol):
    """Options of correspondence between views, see `MVDiffusionConfig`."""

    @property
    def k(self) -> int: ...
    @property
    def neighbours(self) -> Neighbours: ...
    @property
    def overlap(self) -> float: ...


class MVDiffusion(LatentDiffusion):
    """A latent diffusion model whose UNet attends to the other views of a scene.

    Attributes:
        multiview: UNet with correspondence-aware attention; None before `with_blocks`.
        hold: given images replace their noisy latents in each step, so that they stay as they are.
        trained_options: options of the training of its blocks, as far as their file has them.
    """

    multiview: MultiviewUNet | None = None
    hold: bool = False
    trained_options: Mapping[str, str] = MappingProxyType({})

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
        """Kind of input channels beside the noisy latents; see `inputs`."""
        channels = self.latent_shape[0]
        return extra_kind(self.unet.config["in_channels"] - channels, channels)

    def check_size(self, size: Size, keys: tuple[str, str]) -> None:
        """Raise ConfigError for an image size that cannot be sampled; `keys`: options of height and width."""
        check_image_size(size, self.unit, self.draft, keys)
        if self.multiview is not None and self.multiview.kind == "depth" and self.multiview.encoding == "reference":
            self.check_pairs(size, self.draft is not None, keys[1])

    def check_pairs(self, size: Size, halved: bool, key: str) -> None:
        """Raise ConfigError if the smallest feature map has an odd number of tokens.

        The reference's encoding of depth pairs tokens, see `PositionalEncoding`. halved: images of half the size count.
        """
        (height, width), token = size, self.unit * (2 if halved else 1)
        if height // token * (width // token) % 2:
            raise ConfigError(
                f"these weights encode depth in pairs of tokens, and images of {height} x {width} pixels"
                f"{', sampled at half the size first,' if halved else ''} have an odd number of them; "
                f"try a width of {(width // token + 1) * token}",
                key,
            )

    def with_blocks(self, blocks: str | Path) -> Self:
        """Add the attention blocks of a file, which may also change the UNet's weights. Raises ConfigError."""
        path = locate("blocks", str(blocks))
        with keyed("blocks"):
            tensors, self.trained_options = read_tensors(path), read_card(path, FORMAT)
            found = convert_released(tensors, with_difference(self.unet, tensors))
        if found.ignored:
            parts = ", ".join(f"{part} ({count})" for part, count in found.ignored_parts.items())
            logger.warning("%s: tensors of no part of the network are not used: %s", blocks, parts)
        return self.with_network(found.network)

    def with_network(self, network: MultiviewUNet) -> Self:
        """Use this network from now on."""
        self.unet, self.multiview = network.unet, network
        return self.to(self.device)

    def check_trained_options(self, **options: object) -> None:
        """Warn of options that differ from the training of the blocks."""
        for name, value in options.items():
            if (trained := self.trained_options.get(name, str(value))) != str(value):
                logger.warning("%s=%s: the attention between views was trained with %s", name, value, trained)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return super().networks | ({} if self.multiview is None else {"multiview": self.multiview})

    def predict(self, x: Tensor, t: Tensor, text: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        """Return the output of the UNet for single images without conditions."""
        return super().predict(torch.cat([x, unknown_channels(self.extra, x)], 1), t, text)

    def masked_extra(self, views: Tensor, given: Tensor, convention: Convention) -> Tensor:
        """Return the extra channels (F, 1 + C, h, w) of an inpainting model.

        Args:
            views: (F, H, W, 3) in [0, 1].
            given: bool, known views (F,) or pixels (F, H, W).
        """
        latents = self.encode_views(masked_images(views, given, convention))
        return mask_channels(latents, given.to(latents.device), convention)

    def geometry(self, at: Cameras, depth: Tensor | None, options: CorrespondenceOptions) -> Geometry:
        """Return the correspondence of posed views with `depth` (F, H, W), or of a panorama without depth."""
        K, c2w = to_opencv(at)
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
        """Predict the noise in the latents of scenes of F views, float32.

        Args:
            x: (B F, C, h, w).
            t: time steps (B F,).
            text: (B F, L, D).
            geometry: correspondence of views; None: each image by itself, as the base model does.
            extra: (B F, E, h, w).
            condition: see `MultiviewUNet.forward`.
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
        """Return the output of the network, noise or v, float32; arguments as in `denoise_views`."""
        extra = unknown_channels(self.extra, x) if extra is None else extra
        inputs = torch.cat([x.float(), extra.float()], 1)
        with self.autocast():
            if self.multiview is None:
                return predict(self.unet, inputs, t, text).float()
            return self.multiview(inputs, t, text, geometry, condition).float()

    @property
    def has_condition_branch(self) -> bool:
        """Whether the network has a branch for given images."""
        return self.multiview is None or self.multiview.has_condition

    def fixed_latents(
        self, extra: Tensor | None, condition: Tensor | None, mask: Convention
    ) -> tuple[Tensor, Tensor] | None:
        """Return where latents are fixed (F, 1, h, w) and their values (F, C, h, w); None: nowhere.

        It is the only way in which a network without a condition branch takes given images.
        """
        if condition is not None and (self.hold or not self.has_condition_branch):
            return condition[:, -1:], condition[:, :-1]
        if self.hold and self.extra == "mask" and extra is not None:
            return given_latents(extra, mask)
        return None

    @torch.no_grad()
    def sample_views(
        self,
        prompts: Sequence[str],
        geometry: Geometry | None,
        size: Size,
        conditions: ImageConditions = lambda size: (None, None),
        steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str = "",
        generator: Generators = None,
        on_step: Callable[[], None] = lambda: None,
        eta: float = 0.0,
        mask: Convention = "code",
        sync: ViewSync = NO_SYNC,
    ) -> Tensor:
        """Sample the F views of a scene, one prompt each, by DDIM: (F, H, W, 3) in [0, 1], on the CPU.

        Args:
            size: (H, W), multiples of `unit`.
            conditions: image conditions, the same with and without the prompt.
            on_step: called before each step; may raise.
            eta: see `ddim_sigma`.
            mask: convention of masks, for `hold`.
            sync: see `sample_images`.
        """
        count, text = len(prompts), self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])

        def sample_pass(size: Size, start: Tensor, init: InitLatents | None) -> Tensor:
            extra, condition = (None if part is None else part.to(self.device) for part in conditions(size))
            fixed = self.fixed_latents(extra, condition, mask)
            condition = condition if self.has_condition_branch else None

            def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
                eps, pairs = [], geometry if n_view == count else None
                for z, times, words in zip(*(part.split(len(start)) for part in (x, t, text)), strict=True):
                    if fixed is not None:
                        where, given = fixed
                        z = torch.where(where > 0, self.schedule.add_noise(given, start, times), z)
                    eps.append(self.denoise_views(z, times, words, pairs, extra, condition))
                return torch.cat(eps)

            text_condition = Condition(text, n_view=count, single_view_uncond=self.guide_views)
            how = (self.schedule, steps, init, eta, generator, before_steps(on_step))
            z = sample_latents(guided(denoise, guidance_scale), start, text_condition, *how)
            return z if fixed is None else torch.where(fixed[0] > 0, fixed[1], z)

        return sample_images(self, count, size, sample_pass, generator, sync)
