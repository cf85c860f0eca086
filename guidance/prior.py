"""What every diffusion prior offers: text, noise, pictures; a multi-view one also takes cameras.

Systems, losses and evaluation know priors by these two interfaces only. A prior inherits from one of them, which gives
it `sample`; mypy then checks that it has all the rest.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.guidance.diffusion import (
    Conditions,
    Generators,
    OnStep,
    Reference,
    guided,
    per_image,
)
from threedgen.guidance.draft import Begun, Size, ddim, in_both_sizes
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import tokens

logger = logging.getLogger(__name__)

GUESS_NOISE = 0.2
"""How much noise what a prior guesses gets where samples begin from it. Of the toybox prior, with guidance 3 and 20
DDIM steps for all of the way, FID to the truth is 10.4 with 0.1, 10.6 with this much and 11.0 with 0.3; more noise,
more luck."""


class Prior(Protocol):
    """A frozen diffusion model of pictures.

    Images are (B,H,W,3) in [0,1], latents (B,C,h,w) (of a prior on pixels these are the pictures, in [-1,1]).
    The views of an object are consecutive.

    unet: the network that denoises.  schedule: the noise that it was trained with.  image_size: pixels per side of its
    pictures.  factor: pixels per latent and axis.  device, dtype: where and in what its networks compute.
    draft: samples are drawn at half the size first, and then again with so much of all noise; None: at once.
    guide_views: samples of several views are guided away from what each view is by itself and without the prompt, not
    from what it is without the prompt alone.
    identifiers: words that stand for a subject it was tuned to.
    """

    draft: float | None = None
    guide_views: bool = False
    unet: nn.Module
    tokenizer: Any
    schedule: Schedule
    image_size: int
    factor: int
    device: torch.device
    dtype: torch.dtype

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Those that it has, under the names of their folders."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C,h,w) of the latents of one picture."""

    @property
    def identifiers(self) -> Sequence[str]:
        return ()

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Moves the networks, and chooses the precision anew if it is "auto"."""

    def release(self) -> None:
        """Gives up what a distillation does not ask for once the prompt is encoded: no new prompts, no pictures."""
        return  # a prior that holds nothing else has nothing to give up

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """n prompts -> (n,L,D) float32. What does not fit is cut off; ask ``tokens_cut`` beforehand."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Length to which prompts are filled up or cut, start and end token included."""

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int]:
        """(L,D) of what ``encode_prompt`` gives for a prompt."""

    def tokens_cut(self, prompt: str) -> str:
        """The end of the prompt that the text encoder will not see; "" if it sees all of it."""
        return tokens.tokens_cut(self.tokenizer, prompt, self.max_tokens)

    def note_cuts(self, prompts: list[str]) -> None:
        """Logs the words that have no effect."""
        for prompt in prompts:
            if cut := self.tokens_cut(prompt):
                logger.info("a prompt is too long, these words have no effect: %r", cut)

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """Words that the text encoder never saw, each with the nearest ones that it did."""
        return tokens.unknown_words(self.tokenizer, prompt)

    def autocast(self) -> torch.autocast:
        """The precision ``dtype``, for what is computed inside."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def resized(self, rgb: Tensor) -> Tensor:
        """(B,H,W,3) in [0,1] -> (B,3,s,s) in [-1,1], s = ``image_size``, on its device."""
        x = rgb.to(self.device, torch.float32).permute(0, 3, 1, 2)
        if x.shape[-2:] != (size := (self.image_size, self.image_size)):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x * 2 - 1

    def camera(self, c2w: Tensor) -> Tensor | None:
        """Poses (B,4,4), OpenGL axes and z up, as ``denoise`` takes them; None: this prior knows no cameras."""
        return None

    def note_views(self, c2w: Tensor) -> None:
        """Warns of poses (B,4,4) from where it was not trained to look, if there are any that it knows of."""
        return

    @abstractmethod
    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,H,W,3) of any size -> latents, with gradients; ``generator`` where the encoding is random."""

    @abstractmethod
    def decode_latents(self, z: Tensor) -> Tensor:
        """Latents -> (B,H,W,3) in [0,1]."""

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """What the UNet itself says, float32: the noise or v, as ``schedule.prediction`` has it; see ``denoise``."""

    def denoise(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """The noise in latents ``x`` (B,C,h,w) at time steps ``t`` (B,) or (), float32, like ``x``.

        Text (B,L,D). A prior without cameras looks at each picture by itself, whatever ``camera`` and ``n_view`` are.
        """
        return self.schedule.eps_from_output(x, self.network(x, t, text, camera, n_view), t)

    def reference(self, text: Tensor) -> Reference | None:
        """What it saw, with text (1,L,D), of the picture that its config gives it of the thing; None: there is none."""
        return None

    def guess(self, text: Tensor, c2w: Tensor | None) -> Tensor | None:
        """Latents (B,C,h,w) that text (B,L,D) and poses (B,4,4) let expect, before any noise; None: it has no idea."""
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
        on_step: OnStep = lambda done, steps: None,
        guess_noise: float = GUESS_NOISE,
    ) -> Tensor:
        """DDIM samples of P prompts with V views each, denoised together -> (P V,H,W,3) in [0,1], on the CPU.

        Args:
            prompts: one or several.  negative_prompt: what to stay away from, for all of them.
            c2w: poses (V,4,4) of the views of each prompt, or (P,V,4,4); None: one picture each from the 2D model.
            generator: one, or one a prompt; then a prompt's noise does not depend on the others, which change no more
                than rounding. Noise is drawn on its device, so one on the CPU gives the same start everywhere.
            on_step: for whoever shows how far it is.
            guess_noise: how much noise what the prior guesses gets, in (0, 1], and the share of the steps that are
                made; 1, or no guess: all begins as noise.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        n_view = 1 if c2w is None else c2w.shape[-3]
        poses = camera = None
        if c2w is not None:
            poses = c2w.expand(len(prompts), n_view, 4, 4).flatten(0, 1).to(self.device).float()
            camera = self.camera(poses)
        text = self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])
        count = len(prompts) * n_view
        alone = self.guide_views and n_view > 1
        given = Conditions(text, camera, n_view, reference=self.reference(text[0][:1]), alone=alone)
        expected = self.guess(per_image(text[0], count), poses) if guess_noise < 1 else None
        guess = None if expected is None else Begun(expected, guess_noise)
        denoise = guided(self.denoise, guidance_scale)

        def draw(size: Size, noise: Tensor, begun: Begun | None) -> Tensor:
            return ddim(denoise, noise, given, self.schedule, steps, begun=begun, on_step=on_step)

        return in_both_sizes(
            self, count, (self.image_size, self.image_size), draw, generator, together=n_view, guess=guess
        )


class MultiviewPrior(Prior, Protocol):
    """A prior that draws several views of an object at once.

    ``denoise`` lets ``n_view`` consecutive pictures see each other and tells them apart by their cameras; with n_view
    = 1 and no camera it is the 2D model. It raises ValueError if n_view does not divide the batch.
    """

    @abstractmethod
    def camera(self, c2w: Tensor) -> Tensor: ...
