"""Interface of novel-view models, and ancestral sampling of views one after the other (3DiM, sections 2.2 and 7.3).

The chain of a view starts from noise; each step is conditioned on one of the finished views (`candidates`), and the
view joins them at its end. With steps = 1 this is the one-step regression: a network that predicts the "sample" is
called once, on white noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from threedgen.guidance.guidance import combine
from threedgen.guidance.sampling import fresh_noise

from .logsnr import Prediction, logsnr_steps, posterior, x0_from_output

Progress = Callable[[int, int, Tensor], None]
StrategyName = Literal["stochastic", "first", "last"]


class ViewModel(Protocol):
    """A model that predicts a target view from one condition, on images or on latents.

    Attributes:
        prediction: parameterisation of its output.
        image_size: height and width of images in pixels.
        unet: the network that is compiled.
    """

    prediction: Prediction
    image_size: tuple[int, int]

    @property
    def unet(self) -> nn.Module: ...

    @property
    def clip(self) -> float | None:
        """Largest absolute value of clean views; None for latents."""

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Convert images (N, H, W, 3) in [0, 1] to the model's input (N, C, h, w)."""

    def decode_images(self, x: Tensor) -> Tensor:
        """Convert (N, C, h, w) to images (N, H, W, 3) in [0, 1]."""

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """Predict the target, (B, C, H, W) float32.

        Args:
            x: condition (B, C, H, W), noise where `keep` is False.
            z: noisy target (B, C, H, W).
            logsnr: noise level of the target (B,).
            c2w: poses of condition and target (B, 2, 4, 4), OpenGL axes.
            K: intrinsics in pixels (B, 3, 3), of both.
            keep: (B,) bool, False where the condition is dropped.
        """


def candidates(strategy: StrategyName, known: int, last: int = 1) -> range:
    """Return the indices of the views that may condition the next, of the `known` first ones (input views first).

    stochastic: all (section 2.2). first: the first input view, so sampled views do not condition each other. last:
    Markovian, the `last` >= 1 newest.
    """
    return {"stochastic": range(known), "first": range(1), "last": range(max(0, known - last), known)}[strategy]


def streams(generator: torch.Generator) -> list[torch.Generator]:
    """Return independent generators of a scene for noise, choice of the condition and dropped conditions."""
    seeds = torch.randint(2**62, (3,), generator=generator, device=generator.device).tolist()
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


@torch.no_grad()
def sample_views(
    model: ViewModel,
    images: Tensor,
    c2w: Tensor,
    targets: Tensor,
    K: Tensor,
    generators: Sequence[torch.Generator],
    strategy: StrategyName = "stochastic",
    last: int = 1,
    steps: int = 256,
    guidance_scale: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Sample the views of S scenes at their target poses, in that order: (S, T, C, H, W), float32.

    The model runs in the surrounding autocast; everything else is float32.

    Args:
        images: encoded input views (S, N, C, H, W), N >= 1.
        c2w: poses of the input views (S, N, 4, 4).
        targets: poses to sample (S, T, 4, 4).
        K: intrinsics in pixels (S, 3, 3), of all views of a scene.
        generators: one per scene, so a scene does not depend on the others in the batch; the same generator gives the
            same noise with every strategy and guidance.
        strategy, last: see `candidates`; each step samples one of them.
        steps: denoising steps per view; 256 in the paper.
        guidance_scale: s of eps_u + s (eps_c - eps_u): 1 is none, 0 ignores the condition, others double the batch.
            The weight w of (1 + w) eps_c - w eps_u is s = 1 + w; the paper has 3 for SRN cars and 2 for chairs, of an
            unspecified form.
        progress: called after each step as (steps done, total steps, predicted clean views (S, C, H, W)).
    """
    scenes, inputs, count = len(images), images.shape[1], targets.shape[1]
    rows = torch.arange(scenes, device=images.device)
    noise, picks, dropped = zip(*map(streams, generators), strict=True)
    views = torch.cat([images.float(), images.new_zeros(scenes, count, *images.shape[2:], dtype=torch.float32)], dim=1)
    poses = torch.cat([c2w, targets], dim=1).float()
    levels = logsnr_steps(steps).to(images.device)
    for done in range(count):
        new, choice = inputs + done, candidates(strategy, inputs + done, last)
        z = fresh_noise(views[:, 0], noise)
        for step in range(steps):
            random = [int(torch.randint(len(choice), (), generator=g, device=g.device)) for g in picks]
            picked = torch.tensor([choice[k] for k in random], device=images.device)
            pair = torch.stack([poses[rows, picked], poses[:, new]], dim=1)
            blank = fresh_noise(z, dropped)
            x0 = guided_x0(model, views[rows, picked], blank, z, levels[step], pair, K, guidance_scale)
            x0 = clipped(model, x0)
            z, variance = posterior(z, x0, levels[step], levels[step + 1])
            if step + 1 < steps:
                z = z + variance.sqrt() * fresh_noise(z, noise)
            if progress is not None:
                progress(done * steps + step + 1, count * steps, x0)
        views[:, new] = clipped(model, z)
    return views[:, inputs:]


def clipped(model: ViewModel, x: Tensor) -> Tensor:
    """Clip clean views to the model's range."""
    return x if model.clip is None else x.clamp(-model.clip, model.clip)


def guided_x0(
    model: ViewModel, x: Tensor, blank: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, guidance_scale: float
) -> Tensor:
    """Predict the clean views (S, C, H, W) of `z` at the level `logsnr` (), with classifier-free guidance.

    x0, eps and v are affine in each other for one z, so guidance is the same in all of them. `blank` (S, C, H, W) is
    fresh noise that replaces the condition `x` where it is dropped. A scale of 1 or 0 computes one branch only.
    """
    branches = [(x, True)] if guidance_scale != 0 else []
    branches += [(blank, False)] if guidance_scale != 1 else []
    n, scenes = len(branches), len(z)
    keep = torch.tensor([kept for _, kept in branches], device=z.device).repeat_interleave(scenes)
    conditions = torch.cat([condition for condition, _ in branches])
    level = logsnr.reshape(1).expand(n * scenes)
    all_z, all_c2w, all_K = (torch.cat([tensor] * n) for tensor in (z, c2w, K))
    outputs = model.predict(conditions, all_z, level, all_c2w, all_K, keep).float().chunk(n)
    output = outputs[0] if n == 1 else combine(outputs[0], outputs[1], guidance_scale)
    return x0_from_output(z, output, logsnr, model.prediction)
