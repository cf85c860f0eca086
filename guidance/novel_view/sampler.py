"""Interface of novel-view models, and ancestral sampling of views one after the other (3DiM, sections 2.2 and 7.3).

Sampling of a view starts from noise. Each denoising step is conditioned on one of the views that are known so far
(`candidates`). When a view is finished, it becomes a known view. With steps = 1 and a network that predicts the
"sample", this is one-step regression: the network is called once, on white noise.
"""

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
    """Interface of a model that predicts a target view from one condition view, as images or as latents.

    Attributes:
        prediction: meaning of the output: noise, v or the clean view.
        image_size: height and width of images in pixels.
        unet: the network that the option `compile` compiles.
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
        """Return the output of the network for the target view, (B, C, H, W) float32; see `prediction`.

        Args:
            x: clean condition view (B, C, H, W); noise where `keep` is False.
            z: noisy target view (B, C, H, W).
            logsnr: log-SNR of the target (B,).
            c2w: camera-to-world poses of condition (index 0) and target (1), (B, 2, 4, 4), OpenGL axes.
            K: intrinsics in pixels (B, 3, 3), shared by both views.
            keep: (B,) bool, False where the condition is dropped.
        """


def candidates(strategy: StrategyName, known: int, last: int = 1) -> range:
    """Return the indices of the views that may be the condition of the next view.

    Args:
        strategy: "stochastic": all known views (section 2.2). "first": only the first input view. "last": only the
            `last` newest views.
        known: number of known views; the input views come first.
    """
    return {"stochastic": range(known), "first": range(1), "last": range(max(0, known - last), known)}[strategy]


def streams(generator: torch.Generator) -> list[torch.Generator]:
    """Return three generators, seeded by `generator`: for noise, choice of the condition, and dropped conditions."""
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
    """Sample T views of each of S scenes, in the order of their poses. Returns encoded views (S, T, C, H, W), float32.

    The model runs in the autocast context of the caller; everything else is float32.

    Args:
        images: encoded input views (S, N, C, H, W), N >= 1.
        c2w: camera-to-world poses of the input views (S, N, 4, 4), OpenGL axes.
        targets: camera-to-world poses of the views to sample (S, T, 4, 4), OpenGL axes.
        K: intrinsics in pixels (S, 3, 3), shared by all views of a scene.
        generators: one per scene, so a scene does not depend on the other scenes of the batch. The same generator gives
            the same noise for all strategies and guidance scales.
        strategy, last: views that may be the condition, see `candidates`; each step samples one of these views.
        steps: denoising steps per view; 256 in the paper.
        guidance_scale: s in eps_u + s (eps_c - eps_u). 1 means no guidance, 0 ignores the condition, other values
            double the batch. For the form (1 + w) eps_c - w eps_u, s is 1 + w. The paper has weight 3 for SRN cars and
            2 for chairs, and does not say in which form.
        progress: called after each step with (steps done, total steps, predicted clean views (S, C, H, W)).
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
    """Clip clean views (...) to [-model.clip, model.clip], if the model has this limit."""
    return x if model.clip is None else x.clamp(-model.clip, model.clip)


def guided_x0(
    model: ViewModel, x: Tensor, blank: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, guidance_scale: float
) -> Tensor:
    """Predict the clean target views (S, C, H, W) with classifier-free guidance.

    For a fixed z, the predictions x0, eps and v are affine functions of each other, so guidance has the same result for
    all of them. With a scale of 1 or 0, only one branch is computed.

    Args:
        x: clean condition views (S, C, H, W).
        blank: noise (S, C, H, W) that replaces `x` in the branch without condition.
        z: noisy target views (S, C, H, W).
        logsnr: log-SNR of `z`, scalar ().
        c2w: camera-to-world poses of condition (index 0) and target (1), (S, 2, 4, 4), OpenGL axes.
        K: intrinsics in pixels (S, 3, 3).
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
