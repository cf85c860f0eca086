"""MVDream (arXiv 2308.16512): a text-to-image diffusion model that draws several views of one object at once.

The object of this file is the same for the released weights and for the small embedded toybox prior: stock
UNet, VAE and text encoder, made multi-view by ``multiview/joined.py``. With n_view = 1 and no camera it is
the 2D model. Classifier-free guidance and losses are elsewhere (``diffusion.py``, ``distillation/``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from threedgen.config import ConfigError
from threedgen.config.errors import in_a_line, short
from threedgen.guidance import diffusion, sdxl
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.convolution import quick
from threedgen.guidance.draft import check_halves
from threedgen.guidance.multiview.joined import make_multiview, predict, set_attention
from threedgen.guidance.options import COARSE, SECOND, DraftedConfig, MVDreamConfig
from threedgen.guidance.prior import MultiviewPrior
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components, ldm, subject_weights, tokens
from threedgen.guidance.weights.components import SecondText
from threedgen.run.dtypes import compact, compute_dtype
from threedgen.run.prompts import without

TRY = 8
"""Latents per side of the picture by which a prior is tried out: at all levels of its UNet there is something left."""


def build(options: MVDreamConfig, device: torch.device | str = "cpu") -> MVDream:
    """The prior that a config describes. Raises ConfigError."""
    o = options
    subject = {"personalisation": o.personalisation, "personalisation_strength": o.personalisation_strength}
    return load_as(MVDream, o, device, **subject)


def load_as(kind: type[Any], options: DraftedConfig, device: torch.device | str, **more: Any) -> Any:
    """A ``kind`` of MVDream as the options of any prior say. Raises ConfigError."""
    o = options
    if o.attention == "xformers" and torch.device(device).type != "cuda":
        raise ConfigError(f"'xformers' computes on a CUDA device, not on {device}; choose attention=sdpa", "attention")
    prior = kind.load(o.weights, device, o.dtype, o.tokenizer, o.image_size, **more)
    set_attention(prior.unet, o.attention)
    return prior.with_draft(o.draft)


class MVDream(MultiviewPrior):
    """A multi-view prior. Images are (B,H,W,3) in [0,1], latents (B,4,h,w), views of an object consecutive.

    The networks are used as they are given: ``load`` freezes them, a trainer may hand in live ones. Weights stay
    float32; ``dtype`` is the precision in which UNet and encoder compute (autocast); pictures are decoded in float32.
    """

    unet: UNet2DConditionModel

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: Any,
        schedule: Schedule | None = None,
        coarse: CoarsePredictor | None = None,
        second: SecondText | None = None,
        image_size: int | None = None,
        dtype: str = "auto",
        device: torch.device | str | None = "cpu",
    ) -> None:
        """second: SDXL's other text encoder.  device None leaves the networks where they are, for an owner that moves
        them itself."""
        components.check_together(unet, vae, text_encoder, tokenizer, coarse, self.extra_channels(unet, vae), second)
        self.unet, self.vae = quick(make_multiview(unet)), quick(vae)
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.coarse, self.second = tokenizer, coarse, second
        self.text_positions = int(text_encoder.config.max_position_embeddings)
        self.schedule = schedule or Schedule.scaled_linear()
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)  # pixels per latent and axis
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
        camera: bool = True,
        personalisation: str | None = None,
        personalisation_strength: float = 1.0,
    ) -> Self:
        """Frozen networks from ``weights``: see ``loading.locate``.

        ``camera`` demands a camera branch; without it a plain Stable Diffusion loads too (2D mode only).
        ``personalisation``: the file that teaches these very weights one subject (subject_weights.py), and how much of
        it is added. Nothing in the files is executed. Raises ConfigError, one sentence, for anything missing or wrong.
        """
        found = components.load(weights, tokenizer, camera)
        if personalisation is not None:
            subject_weights.apply(found, Path(personalisation).expanduser(), personalisation_strength)
        try:
            prior = cls(*found, image_size=image_size, dtype=dtype, device=device)
            drawn = prior.first_try()
        except (ConfigError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what a config of other kinds leads to: anything
            raise ConfigError(f"{weights!r} cannot draw ({short(in_a_line(error), 120)[1:-1]})", "weights") from None
        if not drawn.isfinite().all():
            raise ConfigError(f"{weights!r} draws NaN: its weights or configs are damaged", "weights")
        return prior

    @staticmethod
    def extra_channels(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
        """How many channels the UNet takes beside the noisy latents. Raises ConfigError."""
        return 0

    @torch.no_grad()
    def first_try(self) -> Tensor:
        """Latents (1,C,h,w) of a picture of TRY x TRY latents, to which every network gave its part.

        Names, shapes and numbers of files can be in order, and yet the networks not work, or not together.
        """
        camera = None if self.unet.class_embedding is None else self.camera(torch.eye(4, device=self.device)[None])
        z = torch.zeros(1, self.latent_shape[0], TRY, TRY, device=self.device)
        last = torch.tensor([self.schedule.T - 1], device=self.device)
        noise = self.denoise(z, last, self.encode_prompt(["an unheard-of thing"]), camera)
        picture = self.decode_latents(noise)
        with self.encoding():
            return noise + self.vae.encode(2 * picture.permute(0, 3, 1, 2) - 1).latent_dist.mean.float()

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        for network in self.networks.values():
            network.to(self.device)
        self.dtype = compute_dtype(self.precision, self.device)
        return self

    def compact(self) -> Self:
        """Halves the memory of the UNet where it does not compute in float32, for drawing alone: it draws the same, but
        must not be trained or saved any more."""
        for name in {"unet", "multiview"} & self.networks.keys():
            compact(self.networks[name], self.dtype)
        return self

    def with_draft(self, draft: float | None) -> Self:
        """Draws in two sizes from now on, or in one; see ``draft``. Raises ConfigError if ``image_size`` cannot be
        halved, or if samples begin from what a coarse predictor expects."""
        if draft is not None and self.coarse is not None:
            raise ConfigError(
                "is of samples that begin as noise, and those of these weights begin with a coarse prediction; "
                "leave it out",
                "draft",
            )
        check_halves((self.image_size, self.image_size), draft, self.unit)
        self.draft = draft
        return self

    @property
    def unit(self) -> int:
        """Pixels of which the sides of pictures should be multiples."""
        return int(self.factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        every = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder, COARSE: self.coarse}
        every |= {} if self.second is None else {SECOND: self.second.network}
        return {name: network for name, network in every.items() if network is not None}

    def release(self) -> None:
        """Gives up what a distillation does not ask for once the prompt is encoded: text encoder and VAE's decoder.

        Their memory is free when nobody else holds them. From then on there are no new prompts and no pictures.
        """
        vae: Any = self.vae
        self.text_encoder = self.second = None
        vae.decoder = vae.post_quant_conv = None

    def pipeline(self) -> Any:
        """The same networks, not copied, as a diffusers pipeline (`MVDreamPipeline`)."""
        from .pipeline import MVDreamPipeline

        scheduler = components.scheduler(self.schedule)
        found = MVDreamPipeline(self.unet, self.vae, self.text_encoder, self.tokenizer, scheduler, self.coarse)
        found.precision, found.image_size = self.precision, self.image_size
        return found

    def save(self, folder: Path | str) -> None:
        """Writes a diffusers folder (float16, SHA256SUMS) that ``load`` and diffusers can read."""
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
        count = self.max_tokens * len(self.readings([""])) + sdxl.told_more(self.unet)
        return count, self.unet.config["cross_attention_dim"]

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """n prompts -> (n, L, D) float32: last hidden state after the final layer norm; of two ``readings`` (n, 2L, D);
        of SDXL ``sdxl.both_texts``.

        What does not fit is cut off (logged as info); ask ``tokens_cut`` and ``unknown_words`` beforehand.
        """
        self.note_cuts(prompts)
        return torch.cat([self._encode(read) for read in self.readings(prompts)], dim=1)

    def readings(self, prompts: list[str]) -> list[list[str]]:
        """Lists what the networks read: the prompts; with a coarse predictor and an identifier, also what it reads.

        It was not taught the subject, which the UNet paints over its prediction: it reads them without the identifier.
        """
        usual = [[without(prompt, self.identifiers) for prompt in prompts]]
        return [prompts, *(usual if self.coarse is not None and self.identifiers else [])]

    def _encode(self, prompts: list[str]) -> Tensor:
        ids = tokens.token_ids(self.tokenizer, prompts, self.max_tokens).to(self.device)
        if self.second is None:
            return self.text_encoder(ids).last_hidden_state.float()
        again = tokens.token_ids(self.second.tokenizer, prompts, self.max_tokens).to(self.device)
        return sdxl.both_texts((self.text_encoder, self.second.network), (ids, again))

    @property
    def identifiers(self) -> list[str]:
        """The words that stand for a subject; none unless the prior was tuned to one."""
        return tokens.added_words(self.tokenizer)

    def camera(self, c2w: Tensor) -> Tensor:
        """Poses (B,4,4) -> (B,16), see ``camera_vector``."""
        return camera_vector(c2w)

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,H,W,3) -> latents (B,4,h,w) drawn from the VAE's posterior; gradients flow back to ``rgb``."""
        mean, std = self.posterior(rgb)
        return self.scaling_factor * (mean + std * diffusion.fresh_noise(mean, generator))

    @torch.no_grad()
    def encode_views(self, views: Tensor) -> Tensor:
        """Means of the latents (F,C,h,w) of pictures (F,H,W,3) at their own size, one after the other."""
        pictures = (2 * views.permute(0, 3, 1, 2) - 1).to(self.device, torch.float32)
        with self.encoding():
            means = [self.vae.encode(picture).latent_dist.mean.float() for picture in pictures.split(1)]
        return self.scaling_factor * torch.cat(means)

    def encoding(self) -> torch.autocast:
        """The precision in which pictures are encoded: in float16 SDXL's VAE would overflow."""
        safe = self.dtype != torch.float16 or not sdxl.told_more(self.unet)
        return self.autocast() if safe else torch.autocast(self.device.type, enabled=False)

    def posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """(B,H,W,3) -> mean and deviation of the VAE's latents (B,4,h,w), not scaled, float32."""
        with self.encoding():
            found = self.vae.encode(self.resized(rgb)).latent_dist
        return found.mean.float(), found.std.float()

    def decode_latents(self, z: Tensor) -> Tensor:
        """Latents (B,4,h,w) -> (B,H,W,3) in [0,1]."""
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
        """What the UNet says of latents ``x`` (B,4,h,w): eps or v, as it was trained; otherwise as ``network``.

        ``coarse``: latents like ``x`` that take the place of what a coarse predictor says.
        """
        if self.coarse is not None:
            text, usual = self.two_readings(text)
            coarse = self.coarse(usual, camera) if coarse is None else coarse
            if coarse.shape[-2:] != x.shape[-2:]:  # pictures of another size than it was trained at
                coarse = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, coarse.to(x.dtype)], dim=1)
        return predict(self.unet, x, t, text, camera, n_view, factor=self.factor)

    def two_readings(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What the UNet reads of text (B,L,D), and what the coarse predictor does, see ``readings``."""
        words, usual = text.chunk(2, 1) if text.shape[1] == 2 * self.max_tokens else (text, text)
        return words, usual

    def guess(self, text: Tensor, c2w: Tensor | None) -> Tensor | None:
        # of no camera there is but a mean over all, of a subject but its class
        return None if c2w is None or self.identifiers else self.expected(self.coarse, text, c2w)

    @torch.no_grad()
    def expected(self, coarse: CoarsePredictor | None, text: Tensor, c2w: Tensor) -> Tensor | None:
        """What a coarse predictor says, if its prior draws that; see ``guess``."""
        if coarse is None or not coarse.config["starts_samples"]:
            return None
        with self.autocast():
            found = coarse(text, camera_vector(c2w.to(self.device).float())).float()
        return F.interpolate(found, self.latent_shape[1:], mode="bilinear", align_corners=False)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        with self.autocast():
            return self.predict(x.float(), t, text, camera, n_view).float()


def camera_vector(c2w: Tensor) -> Tensor:
    """(B,4,4) camera-to-world (OpenGL axes, z up) -> (B,16): row-major, the translation scaled to length 1.

    So the network sees directions only, neither distance nor field of view. ``c2w`` is left as it is.
    """
    unit = F.normalize(c2w[:, :3, 3:], dim=1, eps=1e-8)
    top = torch.cat([c2w[:, :3, :3], unit], dim=2)
    return torch.cat([top, c2w[:, 3:]], dim=1).flatten(1)
