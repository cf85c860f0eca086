"""Interfaces of diffusion priors: `Prior` for single images, `MultiviewPrior` for several views with cameras."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.guidance.guidance import Condition, Reference, guided, per_image
from threedgen.guidance.sampling import (
    Generators,
    InitLatents,
    OnStep,
    Size,
    no_callback,
    sample_images,
    sample_latents,
)
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import tokens
from threedgen.run.prompts import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

COARSE_STRENGTH = 0.2
"""Img2img strength of samples that start from a coarse prediction. With the toybox prior, guidance scale 3 and 20 DDIM
steps, the FID is 10.4 at 0.1, 10.6 at 0.2 and 11.0 at 0.3. Higher strengths give more variation."""


class Prior(Protocol):
    """Frozen diffusion model of images, which samples images and predicts noise for distillation losses.

    Latents are (B, C, h, w); those of a prior on pixels are images (B, 3, H, W) in [-1, 1]. In a batch, the views of
    one object are consecutive.

    Attributes:
        unet: the denoising network.
        tokenizer: tokenizer of the text encoder.
        schedule: noise schedule of the noisy latents that the prior denoises.
        image_size: pixels per side of the images.
        factor: image pixels per latent pixel along each axis; 1 for a prior on pixels.
        device, dtype: device of the networks and precision of their computation.
        draft: strength of the img2img pass at full size that follows a pass at half the size; None: one pass at full
            size.
        guide_views: value of `Condition.single_view_uncond` when several views are sampled.
    """

    draft: float | None = None
    guide_views: bool = False
    unet: nn.Module
    tokenizer: PreTrainedTokenizerBase
    schedule: Schedule
    image_size: int
    factor: int
    device: torch.device
    dtype: torch.dtype

    @property
    def completes_views(self) -> bool:
        """Whether the prior can sample new views beside known ones (`completion.py`)."""
        return False

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks by the names of their folders in diffusers format, such as "unet" and "vae"."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latents of one image of `image_size` pixels per side."""

    @property
    def identifiers(self) -> Sequence[str]:
        """Identifiers of subjects: words that DreamBooth added to the tokenizer, such as "[v]"."""
        return ()

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the networks to a device and return the prior; precision "auto" is resolved for the new device."""

    def free_text_encoder(self) -> None:
        """Free the text encoder and the VAE decoder, if any; `encode_prompt` and `decode_latents` then fail."""
        return

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Return embeddings (n, L, D) float32 of n prompts. The end of a too long prompt is cut, see `tokens_cut`."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Number of tokens to which prompts are padded or cut, including start and end token."""

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int]:
        """Shape (L, D) of an encoded prompt: L tokens, D features."""

    def tokens_cut(self, prompt: str) -> str:
        """Return the end of the prompt that exceeds `max_tokens`; "" if the whole prompt fits."""
        return tokens.tokens_cut(self.tokenizer, prompt, self.max_tokens)

    def note_cuts(self, prompts: list[str]) -> None:
        """Log the words of prompts that exceed `max_tokens`."""
        for prompt in prompts:
            if cut := self.tokens_cut(prompt):
                logger.info("prompt beyond the token limit, these words have no effect: %r", cut)

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """Return the prompt's words outside a closed vocabulary, each with up to three similar known words."""
        return tokens.unknown_words(self.tokenizer, prompt)

    def read_prompt(self, prompt: str) -> Reading:
        """Rewrite a prompt in the words of a closed vocabulary; for other tokenizers it stays unchanged."""
        return tokens.read_prompt(getattr(self, "tokenizer", None), prompt)

    def autocast(self) -> torch.autocast:
        """Return a context manager in which networks compute in `dtype`; it has no effect for float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def resized(self, rgb: Tensor) -> Tensor:
        """Resize images (B, H, W, 3) in [0, 1] to (B, 3, s, s) in [-1, 1] on the prior's device; s = `image_size`."""
        x = rgb.to(self.device, torch.float32).permute(0, 3, 1, 2)
        if x.shape[-2:] != (size := (self.image_size, self.image_size)):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x * 2 - 1

    def camera(self, c2w: Tensor) -> Tensor | None:
        """Convert camera-to-world matrices (B, 4, 4) to the argument `camera` of `denoise`, such as vectors (B, 16).

        Axes are OpenGL's (the camera looks along -z), in a world with z up. Returns None for a prior without cameras.
        """
        return None

    def note_views(self, c2w: Tensor) -> None:
        """Log a warning if camera-to-world matrices (B, 4, 4) are outside the prior's training range, if known."""
        return

    @abstractmethod
    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, H, W, 3) in [0, 1], of any size, to latents (B, C, h, w), with gradients.

        `generator` is that of a random encoding, as with a VAE.
        """

    @abstractmethod
    def decode_latents(self, z: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to images (B, H, W, 3) in [0, 1]."""

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """Return the UNet's output (B, C, h, w) float32, which is noise or v (`schedule.prediction`); see `denoise`."""

    def denoise(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """Predict the noise in latents without guidance: (B, C, h, w) float32.

        Args:
            x: noisy latents (B, C, h, w).
            t: time steps (B,) or (), 0..T-1.
            text: embeddings (B, L, D) from `encode_prompt`.
            camera: result of the method `camera`, or None. A prior without cameras ignores it.
            n_view: number of consecutive images that are views of one object. A prior without cameras ignores it.
        """
        return self.schedule.eps_from_output(x, self.network(x, t, text, camera, n_view), t)

    def reference(self, text: Tensor) -> Reference | None:
        """Return the features of the config's reference image, computed with text (1, L, D); None without an image."""
        return None

    def coarse_latents(self, text: Tensor, c2w: Tensor | None) -> Tensor | None:
        """Predict latents (B, C, h, w) without denoising, from text (B, L, D) and camera-to-world matrices (B, 4, 4).

        Returns None if the prior has no coarse predictor (`CoarsePredictor`), or has no use for one here.
        """
        return None

    @torch.no_grad()
    def sample(
        self,
        prompts: str | Sequence[str],
        c2w: Tensor | None,
        steps: int = 50,
        guidance_scale: float = 10.0,
        negative_prompt: str = "",
        generator: Generators = None,
        on_step: OnStep = no_callback,
        init_strength: float = COARSE_STRENGTH,
    ) -> Tensor:
        """Sample V views of each of P prompts by DDIM, in one batch.

        Args:
            prompts: one prompt, or a list of P.
            c2w: camera-to-world matrices (V, 4, 4) for all prompts, or (P, V, 4, 4), see `camera`; None: one image per
                prompt, without a camera.
            steps: number of DDIM steps from noise.
            guidance_scale: classifier-free guidance scale; 1: off.
            negative_prompt: text of the unconditional branch, for all prompts.
            generator: one random generator, or one per prompt, so that the noise of a prompt does not depend on the
                other prompts. A CPU generator gives the same noise on every device.
            on_step: progress callback.
            init_strength: img2img strength in (0, 1] if the prior has a coarse predictor; 1: start from noise.

        Returns:
            Images (P V, H, W, 3) in [0, 1] on the CPU, the V views of each prompt consecutive.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        n_view = 1 if c2w is None else c2w.shape[-3]
        poses = camera = None
        if c2w is not None:
            poses = c2w.expand(len(prompts), n_view, 4, 4).flatten(0, 1).to(self.device).float()
            camera = self.camera(poses)
        text = self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])
        count = len(prompts) * n_view
        reference, separate = self.reference(text[0][:1]), self.guide_views and n_view > 1
        condition = Condition(text, camera, n_view, reference=reference, single_view_uncond=separate)
        coarse = self.coarse_latents(per_image(text[0], count), poses) if init_strength < 1 else None
        init = None if coarse is None else InitLatents(coarse, init_strength)
        predict = guided(self.denoise, condition, guidance_scale)

        def sample_pass(size: Size, noise: Tensor, init: InitLatents | None) -> Tensor:
            return sample_latents(predict, noise, self.schedule, steps, init, on_step=on_step)

        size = (self.image_size, self.image_size)
        return sample_images(self, count, size, sample_pass, generator, decode_batch=n_view, init=init)


class MultiviewPrior(Prior, Protocol):
    """Prior that denoises `n_view` consecutive images together, as views of one object, each with its camera.

    With n_view = 1 and without a camera it is a 2D model.
    """

    @abstractmethod
    def camera(self, c2w: Tensor) -> Tensor: ...
