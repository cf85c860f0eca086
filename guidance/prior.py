"""Interface of diffusion priors: text, noise, images; a multi-view prior also takes cameras.

Systems, losses and evaluation know priors by these two classes only.  A prior inherits from one of them, which gives it
`sample`; mypy then checks the rest.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.guidance.coarse_to_fine import Size, sample_images
from threedgen.guidance.guidance import Condition, Reference, guided, per_image
from threedgen.guidance.sampling import Generators, InitLatents, OnStep, no_callback, sample_latents
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import tokens
from threedgen.run.prompts import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

COARSE_STRENGTH = 0.2
"""Img2img strength of samples that start from a coarse prediction. For the toybox prior, guidance 3 and 20 DDIM steps,
FID to the truth is 10.4 at 0.1, 10.6 at 0.2 and 11.0 at 0.3; higher values give more variation."""


class Prior(Protocol):
    """A frozen diffusion model of images.

    Images are (B, H, W, 3) in [0, 1], latents (B, C, h, w); for a prior on pixels latents are the images, in [-1, 1].
    Views of an object are consecutive.

    Attributes:
        unet: the denoising network.
        schedule: noise schedule that it was trained with.
        image_size: pixels per side of its images.
        factor: pixels per latent and axis.
        device, dtype: where and in what precision its networks compute.
        draft: img2img strength at full size after a sample at half the size; None: one pass.
        guide_views: the unconditional branch of samples denoises each view by itself (`Condition.single_view_uncond`).
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
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks by the names of their folders."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one image."""

    @property
    def identifiers(self) -> Sequence[str]:
        """Words for a subject that the prior was tuned to."""
        return ()

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the networks; precision "auto" is chosen again."""

    def free_text_encoder(self) -> None:
        """Free the text encoder and the VAE decoder. Call after the prompt is encoded; no further prompts or images."""
        return  # a prior without such networks has nothing to free

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Encode n prompts: (n, L, D) float32. The end of a long prompt is cut off; see `tokens_cut`."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Length to which prompts are padded or cut, start and end token included."""

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of an encoded prompt."""

    def tokens_cut(self, prompt: str) -> str:
        """Return the end of the prompt beyond the token limit; "" if all of it fits."""
        return tokens.tokens_cut(self.tokenizer, prompt, self.max_tokens)

    def note_cuts(self, prompts: list[str]) -> None:
        """Log the words beyond the token limit."""
        for prompt in prompts:
            if cut := self.tokens_cut(prompt):
                logger.info("prompt beyond the token limit, these words have no effect: %r", cut)

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """Return the words outside a closed vocabulary, each with the nearest known ones."""
        return tokens.unknown_words(self.tokenizer, prompt)

    def read_prompt(self, prompt: str) -> Reading:
        """Return a prompt in the words of a closed vocabulary; unchanged for other tokenizers."""
        return tokens.read_prompt(getattr(self, "tokenizer", None), prompt)

    def autocast(self) -> torch.autocast:
        """Context of the precision `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def resized(self, rgb: Tensor) -> Tensor:
        """Resize images (B, H, W, 3) in [0, 1] to (B, 3, s, s) in [-1, 1], s = `image_size`, on its device."""
        x = rgb.to(self.device, torch.float32).permute(0, 3, 1, 2)
        if x.shape[-2:] != (size := (self.image_size, self.image_size)):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x * 2 - 1

    def camera(self, c2w: Tensor) -> Tensor | None:
        """Convert poses (B, 4, 4), OpenGL axes and z up, to the `camera` argument of `denoise`; None: no cameras."""
        return None

    def note_views(self, c2w: Tensor) -> None:
        """Warn of poses (B, 4, 4) outside the training range, if it is known."""
        return

    @abstractmethod
    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, H, W, 3) of any size, with gradients; `generator` where the encoding is random."""

    @abstractmethod
    def decode_latents(self, z: Tensor) -> Tensor:
        """Decode latents to images (B, H, W, 3) in [0, 1]."""

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """Return the output of the UNet, float32: noise or v by `schedule.prediction`; arguments as in `denoise`."""

    def denoise(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """Predict the noise in latents, float32.

        A prior without cameras denoises each image by itself, whatever `camera` and `n_view` are.

        Args:
            x: (B, C, h, w).
            t: time steps (B,) or ().
            text: (B, L, D).
        """
        return self.schedule.eps_from_output(x, self.network(x, t, text, camera, n_view), t)

    def reference(self, text: Tensor) -> Reference | None:
        """Return the features of the reference image in its config, with text (1, L, D); None without one."""
        return None

    def coarse_latents(self, text: Tensor, c2w: Tensor | None) -> Tensor | None:
        """Predict latents (B, C, h, w) from text (B, L, D) and poses (B, 4, 4) alone; None without such a predictor."""
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
        """Sample V views of each of P prompts by DDIM, all denoised together: (P V, H, W, 3) in [0, 1], on the CPU.

        Args:
            prompts: one or several.
            c2w: poses (V, 4, 4) for all prompts, or (P, V, 4, 4); None: one image each, without a camera.
            steps: DDIM steps from noise.
            negative_prompt: for all prompts.
            generator: one, or one a prompt, so that a prompt's noise does not depend on the others. Noise is drawn on
                its device; a CPU generator gives the same start everywhere.
            init_strength: img2img strength where the prior has a coarse prediction, in (0, 1]; 1: start from noise.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        n_view = 1 if c2w is None else c2w.shape[-3]
        poses = camera = None
        if c2w is not None:
            poses = c2w.expand(len(prompts), n_view, 4, 4).flatten(0, 1).to(self.device).float()
            camera = self.camera(poses)
        text = self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])
        count = len(prompts) * n_view
        condition = Condition(
            text,
            camera,
            n_view,
            reference=self.reference(text[0][:1]),
            single_view_uncond=self.guide_views and n_view > 1,
        )
        coarse = self.coarse_latents(per_image(text[0], count), poses) if init_strength < 1 else None
        init = None if coarse is None else InitLatents(coarse, init_strength)
        denoise = guided(self.denoise, guidance_scale)

        def sample_pass(size: Size, noise: Tensor, init: InitLatents | None) -> Tensor:
            return sample_latents(denoise, noise, condition, self.schedule, steps, init, on_step=on_step)

        size = (self.image_size, self.image_size)
        return sample_images(self, count, size, sample_pass, generator, decode_batch=n_view, init=init)


class MultiviewPrior(Prior, Protocol):
    """A prior that samples several views of an object at once.

    `denoise` joins `n_view` consecutive images and tells them apart by their cameras; n_view = 1 without a camera is
    the 2D model. It raises ValueError if n_view does not divide the batch.
    """

    @abstractmethod
    def camera(self, c2w: Tensor) -> Tensor: ...
