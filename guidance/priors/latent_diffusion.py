"""Base class of latent priors: UNet, VAE, text encoder and tokenizer of a diffusers folder or a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from threedgen.config import ConfigError
from threedgen.config.errors import in_a_line, short
from threedgen.guidance import sdxl
from threedgen.guidance.attention.joined import camera_vector, make_multiview, predict, set_attention
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.coarse_to_fine import check_half_size
from threedgen.guidance.options import DraftedConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import fresh_noise
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components, ldm, subject_weights, tokens
from threedgen.guidance.weights.components import SecondText
from threedgen.guidance.weights.loading import COARSE, SECOND
from threedgen.run.dtypes import cast_weights, compute_dtype
from threedgen.run.prompts import remove_words

P = TypeVar("P", bound="LatentDiffusion")
CHECK_SIZE = 8
"""Latents per side of the image that checks new weights: every level of the UNet still has one."""


def load_prior(
    kind: type[P],
    options: DraftedConfig,
    device: torch.device | str,
    personalisation: str | None = None,
    personalisation_strength: float = 1.0,
) -> P:
    """Load a `kind` of `LatentDiffusion` by the options that all of them share. Raises ConfigError."""
    o = options
    if o.attention == "xformers" and torch.device(device).type != "cuda":
        raise ConfigError(f"'xformers' computes on a CUDA device, not on {device}; choose attention=sdpa", "attention")
    subject = personalisation, personalisation_strength
    prior = kind.load(o.weights, device, o.dtype, o.tokenizer, o.image_size, *subject)
    set_attention(prior.unet, o.attention)
    return prior.with_draft(o.draft)


class LatentDiffusion(Prior):
    """A latent diffusion model of single images.

    The networks are used as they are given: `load` freezes them, a trainer may pass trainable ones. Weights stay
    float32; `dtype` is the precision in which UNet and encoder compute (autocast); images are decoded in float32.
    """

    unet: UNet2DConditionModel
    needs_camera = False
    """Whether its weights must have a camera branch, which it then uses."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        schedule: Schedule | None = None,
        coarse: CoarsePredictor | None = None,
        second: SecondText | None = None,
        image_size: int | None = None,
        dtype: str = "auto",
        device: torch.device | str | None = "cpu",
    ) -> None:
        """Combine networks.

        Args:
            coarse: predictor whose output is an input of the UNet.
            second: SDXL's other text encoder.
            image_size: pixels per side; None: that of the UNet's training.
            dtype: as in `PriorConfig.dtype`.
            device: None: the networks stay where they are, for an owner that moves them.

        Raises:
            ConfigError: the networks do not fit together.
        """
        self.schedule = schedule or Schedule.scaled_linear()
        parts = components.Components(unet, vae, text_encoder, tokenizer, self.schedule, coarse, second)
        components.check_together(parts, self.extra_channels(unet, vae))
        self.unet, self.vae = make_multiview(unet), vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.coarse, self.second = tokenizer, coarse, second
        self.text_positions = int(text_encoder.config.max_position_embeddings)
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        side = unet.config["sample_size"] or ldm.LATENT_SIZE[True]
        self.trained_size = (max(side) if isinstance(side, list | tuple) else side) * self.factor  # pixels per side
        self.image_size = image_size or self.trained_size
        if self.image_size % self.factor:
            raise ConfigError(f"{self.image_size} is not a multiple of {self.factor}", "image_size")
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.precision = dtype
        self.device = unet.device
        self.dtype = compute_dtype(dtype, self.device)
        if device is not None:
            self.to(device)

    @classmethod
    def load(
        cls,
        weights: str,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
        tokenizer: str | None = None,
        image_size: int | None = None,
        personalisation: str | None = None,
        personalisation_strength: float = 1.0,
    ) -> Self:
        """Load frozen networks; nothing in the files is executed.

        Args:
            weights: see `loading.locate`.
            personalisation: file of a subject that these weights were tuned to (subject_weights.py), added with
                `personalisation_strength`.

        Raises:
            ConfigError: anything is missing or damaged.
        """
        found = components.load(weights, tokenizer, cls.needs_camera)
        if personalisation is not None:
            subject_weights.apply(found, Path(personalisation).expanduser(), personalisation_strength)
        try:
            prior = cls(*found, image_size=image_size, dtype=dtype, device=device)
            output = prior.check_networks()
        except (ConfigError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what a config of other kinds leads to: anything
            problem = f"{weights!r} cannot sample ({short(in_a_line(error), 120)[1:-1]})"
            raise ConfigError(problem, "weights") from error
        if not output.isfinite().all():
            raise ConfigError(f"{weights!r} samples NaN: its weights or configs are damaged", "weights")
        return prior

    @staticmethod
    def extra_channels(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
        """Return the number of UNet input channels beside the noisy latents. Raises ConfigError."""
        return 0

    @torch.no_grad()
    def check_networks(self) -> Tensor:
        """Run every network once on a small image: latents (1, C, h, w).

        Names, shapes and numbers of files can be in order, and yet the networks not work, or not together.
        """
        camera = None if self.unet.class_embedding is None else self.camera(torch.eye(4, device=self.device)[None])
        z = torch.zeros(1, self.latent_shape[0], CHECK_SIZE, CHECK_SIZE, device=self.device)
        last = torch.tensor([self.schedule.T - 1], device=self.device)
        noise = self.denoise(z, last, self.encode_prompt(["an unheard-of thing"]), camera)
        image = self.decode_latents(noise)
        with self.encoding():
            return noise + self.vae.encode(2 * image.permute(0, 3, 1, 2) - 1).latent_dist.mean.float()

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        for network in self.networks.values():
            network.to(self.device)
        self.dtype = compute_dtype(self.precision, self.device)
        return self

    def compact(self) -> Self:
        """Halve the memory of a UNet that does not compute in float32; it can no longer be trained or saved."""
        for name in {"unet", "multiview"} & self.networks.keys():
            cast_weights(self.networks[name], self.dtype)
        return self

    def with_draft(self, draft: float | None) -> Self:
        """Sample at half the size first from now on, or at once; see `draft`. Raises ConfigError."""
        if draft is not None and self.coarse is not None:
            raise ConfigError(
                "needs samples that start from noise, and these weights start from a coarse prediction; remove it",
                "draft",
            )
        check_half_size((self.image_size, self.image_size), draft, self.unit)
        self.draft = draft
        return self

    @property
    def unit(self) -> int:
        """Pixels of which the sides of images must be multiples."""
        return int(self.factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        every = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder, COARSE: self.coarse}
        every |= {} if self.second is None else {SECOND: self.second.network}
        return {name: network for name, network in every.items() if network is not None}

    def free_text_encoder(self) -> None:
        vae: Any = self.vae
        self.text_encoder = self.second = None
        vae.decoder = vae.post_quant_conv = None

    def save(self, folder: Path | str) -> None:
        """Write a diffusers folder (float16, SHA256SUMS) that `load` and diffusers can read."""
        components.save(self, Path(folder))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.factor
        return self.unet.config["out_channels"], side, side

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_positions)

    @property
    def text_shape(self) -> tuple[int, int]:
        count = self.max_tokens * len(self.prompt_variants([""])) + sdxl.has_added_conditioning(self.unet)
        return count, self.unet.config["cross_attention_dim"]

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Encode n prompts: last hidden state after the final layer norm, (n, L, D) float32.

        With two `prompt_variants` (n, 2 L, D); for SDXL see `sdxl.encode_both`.
        """
        prompts = [self.read_prompt(prompt).text for prompt in prompts]
        self.note_cuts(prompts)
        return torch.cat([self._encode(variant) for variant in self.prompt_variants(prompts)], dim=1)

    def prompt_variants(self, prompts: list[str]) -> list[list[str]]:
        """Return the prompts, and with a coarse predictor and a tuned subject also the prompts without the subject.

        The coarse predictor was not trained on the subject, so it takes the second variant.
        """
        usual = [[remove_words(prompt, self.identifiers) for prompt in prompts]]
        return [prompts, *(usual if self.coarse is not None and self.identifiers else [])]

    def _encode(self, prompts: list[str]) -> Tensor:
        ids = tokens.token_ids(self.tokenizer, prompts, self.max_tokens).to(self.device)
        if self.second is None:
            return self.text_encoder(ids).last_hidden_state.float()
        again = tokens.token_ids(self.second.tokenizer, prompts, self.max_tokens).to(self.device)
        return sdxl.encode_both((self.text_encoder, self.second.network), (ids, again))

    @property
    def identifiers(self) -> list[str]:
        return tokens.added_words(self.tokenizer)

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample latents (B, C, h, w) from the VAE's posterior of images (B, H, W, 3), with gradients."""
        mean, std = self.posterior(rgb)
        return self.scaling_factor * (mean + std * fresh_noise(mean, generator))

    @torch.no_grad()
    def encode_views(self, views: Tensor) -> Tensor:
        """Encode images (F, H, W, 3) at their own size, one after the other: posterior means (F, C, h, w)."""
        images = (2 * views.permute(0, 3, 1, 2) - 1).to(self.device, torch.float32)
        with self.encoding():
            means = [self.vae.encode(image).latent_dist.mean.float() for image in images.split(1)]
        return self.scaling_factor * torch.cat(means)

    def encoding(self) -> torch.autocast:
        """Context of the precision for encoding images: in float16 SDXL's VAE overflows."""
        safe = self.dtype != torch.float16 or not sdxl.has_added_conditioning(self.unet)
        return self.autocast() if safe else torch.autocast(self.device.type, enabled=False)

    def posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's unscaled latents (B, C, h, w) of images, float32."""
        with self.encoding():
            found = self.vae.encode(self.resized(rgb)).latent_dist
        return found.mean.float(), found.std.float()

    def decode_latents(self, z: Tensor) -> Tensor:
        image = self.vae.decode(z.to(self.device, self.vae.dtype) / self.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the UNet in the current precision.

        A 2D prior denoises each image by itself; with `needs_camera`, `n_view` consecutive images attend to each other.

        Args:
            coarse: latents like `x` in place of the coarse prediction.
        """
        if not self.needs_camera:
            camera, n_view = None, 1
        if self.coarse is not None:
            text, coarse_text = self.split_variants(text)
            coarse = self.coarse(coarse_text, camera) if coarse is None else coarse
            if coarse.shape[-2:] != x.shape[-2:]:  # images of another size than it was trained at
                coarse = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, coarse.to(x.dtype)], dim=1)
        return predict(self.unet, x, t, text, camera, n_view, factor=self.factor)

    def split_variants(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Split text (B, L, D) into that of the UNet and that of the coarse predictor, see `prompt_variants`."""
        both = text.shape[1] == 2 * self.max_tokens
        own, coarse = text.chunk(2, 1) if both else (text, text)
        return own, coarse

    @torch.no_grad()
    def predict_coarse(self, coarse: CoarsePredictor | None, text: Tensor, c2w: Tensor) -> Tensor | None:
        """Return the prediction of a coarse predictor at the size of the latents, if samples may start from it."""
        if coarse is None or not coarse.config["starts_samples"]:
            return None
        with self.autocast():
            found = coarse(text, camera_vector(c2w.to(self.device).float())).float()
        return F.interpolate(found, self.latent_shape[1:], mode="bilinear", align_corners=False)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        with self.autocast():
            return self.predict(x.float(), t, text, camera, n_view).float()
