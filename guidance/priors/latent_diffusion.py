"""Base class of latent diffusion priors, with UNet, VAE, text encoder and tokenizer from a folder or a single file."""

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
"""Side in latents of the test image for new weights. The coarsest level of the UNet still has at least one latent."""


def load_prior(
    kind: type[P],
    options: DraftedConfig,
    device: torch.device | str,
    personalisation: str | None = None,
    personalisation_strength: float = 1.0,
) -> P:
    """Load a subclass of `LatentDiffusion` with the options that all subclasses share.

    Args:
        kind: the subclass.
        personalisation: file of a subject that the weights were tuned to; None: no subject.
        personalisation_strength: factor on the weight changes of that file; 1: as trained.

    Raises:
        ConfigError: a file is missing or damaged, or an option does not fit the device or the weights.
    """
    o = options
    if o.attention == "xformers" and torch.device(device).type != "cuda":
        raise ConfigError(f"'xformers' computes on a CUDA device, not on {device}; choose attention=sdpa", "attention")
    subject = personalisation, personalisation_strength
    prior = kind.load(o.weights, device, o.dtype, o.tokenizer, o.image_size, *subject)
    set_attention(prior.unet, o.attention)
    return prior.with_draft(o.draft)


class LatentDiffusion(Prior):
    """Latent diffusion model of single images; base class of the Stable Diffusion, MVDream and adapter priors.

    `load` freezes the networks; a trainer may pass trainable networks to the constructor. Weights stay in float32. UNet
    and VAE encoder compute under autocast in `dtype`; the VAE decoder computes in float32.
    """

    unet: UNet2DConditionModel
    needs_camera = False
    """Whether this class uses the UNet's camera branch; weights without that branch are then an error."""

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
        """Build the prior from loaded networks.

        Args:
            coarse: network that predicts coarse latents from text and camera, as additional input channels of the UNet.
            second: second text encoder of SDXL; None for other models.
            image_size: pixels per side; None: the size that the UNet was trained on.
            dtype: precision of the computation, "auto", "fp32", "bf16" or "fp16".
            device: device to move the networks to; None: do not move them, because the caller does.

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
        """Load frozen networks without executing code from the files.

        Args:
            weights: name of embedded weights, diffusers folder, single-file checkpoint, or hub id "owner/name".
            tokenizer: folder of the tokenizer; None: the tokenizer beside the weights.
            image_size: pixels per side; None: the size that the UNet was trained on.
            personalisation: file with the weight changes for one subject (subject_weights.py).
            personalisation_strength: factor on these weight changes.

        Raises:
            ConfigError: a file is missing or damaged, or the networks do not work together.
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
        """Return the number of UNet input channels in addition to the noisy latents.

        Subclasses raise ConfigError for a number of channels that they do not support.
        """
        return 0

    @torch.no_grad()
    def check_networks(self) -> Tensor:
        """Run every network once on a small image and return a sum of their outputs, (1, C, h, w).

        Files with correct names and shapes may still contain NaN, or networks that do not work together. The caller
        checks that the sum is finite.
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
        """Cast the weights of the UNet to `dtype`. It can then no longer be trained or saved.

        This halves its memory in bf16 and fp16.
        """
        for name in {"unet", "multiview"} & self.networks.keys():
            cast_weights(self.networks[name], self.dtype)
        return self

    def with_draft(self, draft: float | None) -> Self:
        """Set the img2img strength `draft` of coarse-to-fine sampling, and return self.

        Args:
            draft: noise strength in (0, 1] at full size after a sample at half the size; None: one pass at full size.

        Raises:
            ConfigError: the prior has a coarse predictor, or the image size cannot be halved.
        """
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
        """Number of pixels by which the height and the width of images must be divisible."""
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
        """Write the networks as a diffusers folder in float16, with SHA256SUMS. `load` and diffusers can read it."""
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
        """Encode n prompts as (n, L, D) float32: the text encoder's last hidden state after the final layer norm.

        If `prompt_variants` returns two variants, they are joined along the tokens: (n, 2 L, D). For SDXL the result is
        (n, L + 1, D): penultimate features of both encoders, and the pooled text as last token (`sdxl.encode_both`).
        """
        prompts = [self.read_prompt(prompt).text for prompt in prompts]
        self.note_cuts(prompts)
        return torch.cat([self._encode(variant) for variant in self.prompt_variants(prompts)], dim=1)

    def prompt_variants(self, prompts: list[str]) -> list[list[str]]:
        """Return the variants of the prompts to encode, each a list of n texts.

        The first variant is the prompts. With a coarse predictor and a tuned subject there is a second variant, the
        prompts without the words for the subject: the coarse predictor takes it, as it was not trained on the subject.
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
        """Encode images (B, H, W, 3) in [0, 1] as scaled latents (B, C, h, w) sampled from the VAE's posterior.

        Images are resized to `image_size`. Gradients flow back to them.
        """
        mean, std = self.posterior(rgb)
        return self.scaling_factor * (mean + std * fresh_noise(mean, generator))

    @torch.no_grad()
    def encode_views(self, views: Tensor) -> Tensor:
        """Encode images (F, H, W, 3) in [0, 1] as scaled posterior means (F, C, h, w), without resizing.

        h and w are H and W divided by `factor`. Images are encoded one after the other to save memory.
        """
        images = (2 * views.permute(0, 3, 1, 2) - 1).to(self.device, torch.float32)
        with self.encoding():
            means = [self.vae.encode(image).latent_dist.mean.float() for image in images.split(1)]
        return self.scaling_factor * torch.cat(means)

    def encoding(self) -> torch.autocast:
        """Return the autocast context for encoding images; disabled for SDXL in float16, where the VAE overflows."""
        safe = self.dtype != torch.float16 or not sdxl.has_added_conditioning(self.unet)
        return self.autocast() if safe else torch.autocast(self.device.type, enabled=False)

    def posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (B, H, W, 3) in [0, 1], resized to `image_size`, with the VAE.

        Returns:
            Mean and standard deviation of the latents, each (B, C, h, w) float32, before the scaling factor.
        """
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
        """Return the output of the UNet (B, C, h, w), noise or v, in the current autocast precision.

        With `needs_camera`, `n_view` consecutive images attend to each other; otherwise each is denoised separately.

        Args:
            x: noisy latents (B, C, h, w).
            t: timesteps (B,).
            text: encoded prompts (B, L, D).
            camera: camera vectors (B, 16), see `camera_vector`.
            coarse: coarse latents (B, C, h, w) to use instead of the coarse predictor's output.
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
        """Split encoded text (B, L or 2 L, D) into the text of the UNet and of the coarse predictor, each (B, L, D).

        Text with a single variant is returned twice, see `prompt_variants`.
        """
        both = text.shape[1] == 2 * self.max_tokens
        own, coarse = text.chunk(2, 1) if both else (text, text)
        return own, coarse

    @torch.no_grad()
    def predict_coarse(self, coarse: CoarsePredictor | None, text: Tensor, c2w: Tensor) -> Tensor | None:
        """Predict coarse latents from which samples start, resized to the latents of the prior.

        Args:
            text: encoded prompts (B, L, D).
            c2w: camera-to-world poses (B, 4, 4), OpenGL axes, z up.

        Returns:
            (B, C, h, w); None without a coarse predictor.
        """
        if coarse is None:
            return None
        with self.autocast():
            found = coarse(text, camera_vector(c2w.to(self.device).float())).float()
        return F.interpolate(found, self.latent_shape[1:], mode="bilinear", align_corners=False)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        with self.autocast():
            return self.predict(x.float(), t, text, camera, n_view).float()
