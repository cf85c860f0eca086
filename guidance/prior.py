"""Interface of diffusion priors, of single images or of several views with cameras."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.guidance import sampling
from threedgen.guidance.cuda_graph import GraphedCalls
from threedgen.guidance.guidance import Condition, Features, TextPair, guided, repeat_text
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import tokens
from threedgen.run.memory import GPUS, to_device
from threedgen.run.prompts import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

COARSE_STRENGTH = 0.2
"""Img2img strength of samples that start from a coarse prediction; higher values give more variation. FID of the toybox
prior (guidance scale 3, 20 DDIM steps): 10.4 at 0.1, 10.6 at 0.2, 11.0 at 0.3."""


class Prior(Protocol):
    """Frozen diffusion model of images, which samples images and predicts noise for distillation losses.

    Latents are (B, C, h, w); for a prior on pixels they are images (B, 3, H, W) in [-1, 1]. In a batch, the views of
    one object are consecutive. A subclass implements the abstract members: `encode_prompt` (prompts -> text
    embeddings), `encode_images` (images -> latents), `decode_latents` (latents -> images), `network` (noisy latents,
    timesteps, embeddings, cameras -> output of the UNet), `to` (a device), and the properties `networks`,
    `latent_shape`, `max_tokens` and `text_shape`. Priors with cameras also implement `camera` (poses -> argument of
    `network`).

    Attributes:
        unet: the denoising network.
        tokenizer: tokenizer of the text encoder.
        schedule: noise schedule of the latents that the network denoises.
        image_size: pixels per side of the images.
        factor: image pixels per latent pixel along each axis; 1 for a prior on pixels.
        device, dtype: device of the networks and precision of their computation.
        draft: img2img strength in (0, 1] of the second pass of coarse-to-fine sampling, which has the full image size;
            the first pass has half the size. None: one pass at full size.
        guide_views: whether the unconditional prediction of classifier-free guidance treats each view as a single image
            without a camera. The guidance then also amplifies what the views learn from each other. False: it is a
            prediction for all views together, with their cameras.
        timestep_per_view: whether `denoise` can take a different timestep for each view of an object.
        half_weights: whether all weights have the type `dtype`, so that networks compute without autocast.
        composites_reference: whether the reference image gets the background of the renders: a grey level behind the
            cut-out object. Its features (method `reference`) are then computed in each distillation step, not once per
            run.
        cuda_graph: whether the UNet may run as a CUDA graph on a GPU.
        graph: captures and replays the UNet as a CUDA graph if gradients are disabled; None: the UNet runs normally.
    """

    half_weights: bool = False
    timestep_per_view: bool = False
    cuda_graph: bool = True
    graph: GraphedCalls | None = None
    draft: float | None = None
    guide_views: bool = False
    composites_reference: bool = False
    unet: nn.Module
    tokenizer: PreTrainedTokenizerBase
    schedule: Schedule
    image_size: int
    factor: int
    device: torch.device
    dtype: torch.dtype

    @property
    def separate_levels(self) -> bool:
        """Whether views of an object had different noise levels in training.

        Only then can new views be denoised in one batch with known views that have almost no noise, and attend to them,
        see `completion.complete_views`.
        """
        return False

    @property
    def completes_views(self) -> bool:
        """Whether `completion.complete_views` can sample new views of an object from known views."""
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
        """Words that DreamBooth added to the tokenizer for its subjects, such as "[v]"."""
        return ()

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the networks to a device and return self. The precision "auto" is resolved for this device."""

    def free_text_encoder(self) -> None:
        """Free the text encoder and the VAE decoder, if any; `encode_prompt` and `decode_latents` then fail."""
        return

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Return text embeddings (n, L, D) float32 of n prompts. Tokens beyond `max_tokens` are dropped."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Number of tokens to which a prompt is padded or cut, including the start and end tokens."""

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int]:
        """Shape (L, D) of an encoded prompt: L rows (tokens and, for some priors, further vectors) of D features."""

    def tokens_cut(self, prompt: str) -> str:
        """Return the end of the prompt that exceeds `max_tokens`; "" if the whole prompt fits."""
        return tokens.tokens_cut(self.tokenizer, prompt, self.max_tokens)

    def note_cuts(self, prompts: list[str]) -> None:
        """Log the words at the end of each prompt that exceed `max_tokens` and have no effect."""
        for prompt in prompts:
            if cut := self.tokens_cut(prompt):
                logger.info("prompt beyond the token limit, these words have no effect: %r", cut)

    @property
    def vocabulary(self) -> tokens.Vocabulary | None:
        """Closed vocabulary of the tokenizer, in which each known word has one token; None for any other tokenizer."""
        return tokens.closed_vocabulary(getattr(getattr(self, "tokenizer", None), "backend_tokenizer", None))

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """Return the words of a prompt that a closed vocabulary lacks, each with up to three similar known words.

        The result leaves out words with a known synonym. The list is empty if the tokenizer has no closed vocabulary,
        that is, splits any text into tokens.
        """
        return [] if (vocabulary := self.vocabulary) is None else vocabulary.unknown(prompt)

    def read_prompt(self, prompt: str) -> Reading:
        """Rewrite a prompt in the known words of a tokenizer with one token per word (a closed vocabulary).

        The result `Reading` has the new `text` and the words that were replaced or left out. With any other tokenizer,
        the text is unchanged.
        """
        return Reading(prompt) if (vocabulary := self.vocabulary) is None else vocabulary.read(prompt)

    def autocast(self) -> torch.autocast:
        """Return the context in which networks compute in `dtype`.

        It does nothing if `dtype` is float32, or if all weights already have the type `dtype` (`half_weights`).
        """
        return torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype != torch.float32 and not self.half_weights
        )

    def cast_networks(self, lora: bool = False) -> None:
        """Cast frozen weights to `dtype`, so that autocast need not cast them at every call.

        Only a GPU with a 16-bit `dtype` needs this; otherwise, no weights change. `lora` is whether a LoRA is trained
        on the UNet:

        - False: all layers of the UNet are cast. The UNet runs without autocast and, unless `cuda_graph` is False, as a
          CUDA graph.
        - True: normalisation layers of the UNet stay float32. The UNet runs with autocast and without a CUDA graph.
        """
        return

    def replayed(self, function: Callable[..., Tensor], *inputs: Tensor | int | None) -> Tensor:
        """Return `function(*inputs)`, where `function` runs the UNet on `inputs`; replay its CUDA graph if possible.

        This needs disabled gradients and the attribute `graph`, which captures and stores the CUDA graph; if it is
        None, `function` runs normally. Calls are equal if their tensors have equal shapes, dtypes and devices and their
        other inputs equal values. The third of consecutive equal calls captures a graph, and equal calls replay it,
        until three other consecutive equal calls replace it. All calls on one prior must pass the same `function`.
        """
        return function(*inputs) if self.graph is None or torch.is_grad_enabled() else self.graph(function, *inputs)

    def to_network_images(self, rgb: Tensor) -> Tensor:
        """Resize images (B, H, W, 3) in [0, 1] to (B, 3, s, s) in [-1, 1] on the prior's device; s = `image_size`."""
        x = to_device(rgb, self.device).float().permute(0, 3, 1, 2)
        if self.device.type in GPUS:  # group norm on a GPU would copy each channels_last tensor
            x = x.contiguous()
        if x.shape[-2:] != (size := (self.image_size, self.image_size)):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x * 2 - 1

    def camera(self, c2w: Tensor) -> Tensor | None:
        """Convert camera-to-world matrices (B, 4, 4) to the argument `camera` of `denoise`, such as vectors (B, 16).

        Axes are OpenGL's (x right, y up; the camera looks along -z), in a world with z up. A prior without cameras
        returns None.
        """
        return None

    @abstractmethod
    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, H, W, 3) in [0, 1], of any size, to latents (B, C, h, w), with gradients.

        The images are first resized to `image_size`, so (C, h, w) is `latent_shape`. Latents of a VAE are random: they
        are sampled with `generator`; None: torch's global generator.
        """

    @abstractmethod
    def decode_latents(self, z: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to images (B, H, W, 3) in [0, 1].

        H = f h and W = f w, where f is the attribute `factor`: image pixels per latent pixel along each axis.
        """

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """Return the output of the UNet, (B, C, h, w) float32: noise or v, see `schedule.prediction`.

        `x` are noisy latents (B, C, h, w), `t` timesteps (B,) or (), `text` embeddings (B, L, D). `camera` is the
        result of the method `camera` for the B images, or None. `n_view` consecutive images are views of one object.
        """

    def denoise(
        self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1, **image: Features
    ) -> Tensor:
        """Predict the noise in latents, (B, C, h, w) float32, without guidance.

        Args:
            x: noisy latents (B, C, h, w).
            t: timesteps (B,) or (), 0..T-1.
            text: embeddings (B, L, D) from `encode_prompt`.
            camera: result of the method `camera`, or None. A prior without cameras ignores it.
            n_view: number of consecutive images that are views of one object. A prior without cameras ignores it.
            image: if the prior is conditioned on a reference image, the keyword argument `reference`, which is the
                result of the method `reference`; else nothing. It is passed on to the method `network`.
        """
        return self.schedule.eps_from_output(x, self.network(x, t, text, camera, n_view, **image), t)

    def reference(self, text: Tensor, background: Tensor | None = None) -> Features | None:
        """Return features (1, ...) of the prior's reference image by name; None without a reference image.

        The names are those of UNet layers, for instance.

        Args:
            text: embedding (1, L, D) of the prompt, for priors that compute the features with their UNet, which takes
                the prompt.
            background: scalar, grey level in [0, 1] behind the cut-out object; None: 0.5. Only priors whose attribute
                `composites_reference` is True use it; others ignore it.
        """
        return None

    def sample_code(
        self, text: Tensor, generator: sampling.Generators = None, similar_to: Tensor | None = None
    ) -> Tensor:
        """Sample object codes for n prompts; return a copy of `text` (n, L, D) with the codes in the last row.

        An object code is a vector that chooses what a prompt leaves unspecified, once for all views. It replaces the
        last row of `text`, zeros or an earlier code. A prior without object codes returns `text` unchanged. `generator`
        is one random generator or a list of n; None: torch's global generator. `similar_to` (n, L, D) are embeddings
        with codes of n other objects, to which the sampled objects become similar; None: no such objects.
        """
        return text

    @property
    def has_code(self) -> bool:
        """Whether the last row of this prior's text embeddings (L, D) is an object code.

        An object code is a vector for what the prompt leaves unspecified. It is all zeros for a prompt without a code.
        """
        return False

    def encode_code(self, text: Tensor, latents: Tensor, c2w: Tensor, fit: bool = False) -> Tensor:
        """Compute object codes from V known views of each of n objects; return `text` with the codes as last rows.

        An object code is a vector (D,) for what a prompt leaves unspecified. It replaces the last row of the object's
        embedding, which holds zeros or an earlier code. The result is a copy (n, L, D), or `text` itself if the prior
        has no object codes.

        Args:
            text: embeddings (n, L, D) of the prompts.
            latents: clean latents of the views (n, V, C, h, w).
            c2w: camera-to-world matrices of the views (n, V, 4, 4).
            fit: whether Adam then changes the codes, so that the coarse predictor (see `coarse_latents`) reproduces the
                views better; this takes half a second for one view on a CPU.
        """
        return text

    def coarse_latents(self, text: Tensor, c2w: Tensor | None, text_guidance: bool = True) -> Tensor | None:
        """Predict latents (B, C, h, w) as a start for samples, in one pass of a network (the coarse predictor).

        `text` are embeddings (B, L, D), `c2w` camera-to-world matrices (B, 4, 4), OpenGL axes, world z up. With
        `text_guidance`, a prediction with an object code (a vector for what the prompt leaves unspecified) gets
        classifier-free guidance by the empty prompt. Returns None without a coarse predictor, without cameras (`c2w`
        None), or if the prior does not use its predictor for these samples, such as MV-Adapter with a reference image.
        """
        return None

    def coarse_start(
        self, text: Tensor, c2w: Tensor | None, strength: float = COARSE_STRENGTH
    ) -> sampling.InitLatents | None:
        """Predict latents with the coarse predictor (see `coarse_latents`); return them as a start of img2img sampling.

        Args:
            text: embeddings (B, L, D).
            c2w: camera-to-world matrices (B, 4, 4), OpenGL axes, world z up; None: no cameras.
            strength: noise strength in (0, 1] of the img2img start. The default is 0.2; higher values give more
                variation.

        Returns:
            Latents (B, C, h, w) and `strength`. None, which means a start from noise, if `strength` is 1 or
            `coarse_latents` returns None.
        """
        coarse = self.coarse_latents(text, c2w) if strength < 1 else None
        return None if coarse is None else sampling.InitLatents(coarse, strength)

    @torch.no_grad()
    def sample(
        self,
        prompts: str | Sequence[str],
        c2w: Tensor | None,
        steps: int = 50,
        guidance_scale: float = 10.0,
        negative_prompt: str = "",
        generator: sampling.Generators = None,
        on_step: sampling.OnStep = sampling.no_callback,
        init_strength: float = COARSE_STRENGTH,
        eta: float = 0.0,
    ) -> Tensor:
        """Sample V views of each of P prompts by DDIM, in one batch.

        Args:
            prompts: one prompt, or a list of P prompts.
            c2w: camera-to-world matrices (V, 4, 4) for all prompts, or (P, V, 4, 4), OpenGL axes, world z up; None: one
                image per prompt, without a camera.
            steps: number of DDIM steps from noise.
            guidance_scale: classifier-free guidance scale; 1: off.
            negative_prompt: text of the unconditional branch, for all prompts.
            generator: one random generator, or one per prompt, so that the noise of a prompt does not depend on the
                other prompts. A CPU generator gives the same noise on every device.
            on_step: progress callback (steps done, total steps).
            init_strength: noise strength in (0, 1] of samples that start by img2img from the prediction of the coarse
                predictor (see `coarse_latents`); 1, or without such a predictor: they start from noise.
            eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.

        Returns:
            Images (P V, s, s, 3) in [0, 1] on the CPU, s = `image_size`; the V views of a prompt are consecutive.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        text, negative = self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])
        text = self.sample_code(text, generator)
        return self.sample_text(
            (text, negative), c2w, steps, guidance_scale, generator, on_step, init_strength=init_strength, eta=eta
        )

    @torch.no_grad()
    def sample_text(
        self,
        text: TextPair,
        c2w: Tensor | None,
        steps: int,
        guidance_scale: float,
        generator: sampling.Generators = None,
        on_step: sampling.OnStep = sampling.no_callback,
        init_strength: float = COARSE_STRENGTH,
        eta: float = 0.0,
    ) -> Tensor:
        """Sample V views of each of P encoded prompts by DDIM, in one batch.

        Args:
            text: embeddings of the prompts (P, L, D), with object codes (vectors for what a prompt leaves unspecified)
                if the prior has them, and embedding of the negative prompt (1, L, D).
            c2w: camera-to-world matrices (V, 4, 4) for all prompts, or (P, V, 4, 4), OpenGL axes, world z up; None: one
                image per prompt, without a camera.
            steps: number of DDIM steps from noise.
            guidance_scale: classifier-free guidance scale; 1: off.
            generator: one random generator, or one per prompt; None: torch's global generator.
            on_step: progress callback (steps done, total steps).
            init_strength: noise strength in (0, 1] of samples that start by img2img from the prediction of the coarse
                predictor (see `coarse_latents`); 1, or without such a predictor: they start from noise.
            eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.

        Returns:
            Images (P V, s, s, 3) in [0, 1] on the CPU, s = `image_size`; the V views of a prompt are consecutive.
        """
        n_view = 1 if c2w is None else c2w.shape[-3]
        poses = camera = None
        if c2w is not None:
            poses = c2w.expand(len(text[0]), n_view, 4, 4).flatten(0, 1).to(self.device).float()
            camera = self.camera(poses)
        count = len(text[0]) * n_view
        reference, separate = self.reference(text[0][:1]), self.guide_views and n_view > 1
        condition = Condition(text, camera, n_view, reference=reference, single_view_uncond=separate)
        init = self.coarse_start(repeat_text(text[0], count), poses, init_strength)
        predict = guided(self.denoise, condition, guidance_scale)

        def sample_pass(size: sampling.Size, noise: Tensor, init: sampling.InitLatents | None) -> Tensor:
            return sampling.sample_latents(predict, noise, self.schedule, steps, init, eta, generator, on_step)

        size = (self.image_size, self.image_size)
        return sampling.sample_images(self, count, size, sample_pass, generator, decode_batch=n_view, init=init)
