"""What a novel-view model is, and ancestral sampling of views one after the other (3DiM, sections 2.2 and 7.3).

A view's chain starts from noise; at every step one of the views that are there (``candidates``) is its condition.
When the chain ends, its view joins them. With ``steps`` = 1 this is the one-step regression: a network that predicts
the "sample" is asked once, of white noise.
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
    """Predicts a target view from one condition: pictures of ``picture_size``, or latents that it makes of them itself.

    prediction: what it predicts of the target.  picture_size: height and width in pixels.  unet: the module in which
    its time goes.
    """

    prediction: Prediction
    picture_size: tuple[int, int]
    unet: nn.Module

    @property
    def clip(self) -> float | None:
        """Bound of what it predicts; None for latents."""

    def from_pictures(self, rgb: Tensor) -> Tensor:
        """Pictures (N, H, W, 3) in [0, 1] -> what it is given as ``x`` (N, C, h, w)."""

    def to_pictures(self, x: Tensor) -> Tensor:
        """The way back, into [0, 1]."""

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """What ``prediction`` says, (B, C, H, W) float32.

        x (B, C, H, W) is the condition, noise where ``keep`` (B,) bool is False; z the noisy target at ``logsnr`` (B,);
        c2w (B, 2, 4, 4) of both, OpenGL axes; K (B, 3, 3) in pixels.
        """


def check_shapes(need: str, **given: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raises ValueError that names the first tensor of another shape than the one beside it; ``need``: who needs it."""
    for name, (tensor, shape) in given.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {need} {shape}")


def candidates(strategy: StrategyName, known: int, last: int = 1) -> range:
    """Which of the ``known`` views may condition the next; the given ones are the first of them.

    stochastic: all views that are there (section 2.2).  first: the first given one, so that generated views never see
    each other.  last: Markovian, the ``last`` >= 1 newest, given ones among them as long as too few are generated.
    """
    return {"stochastic": range(known), "first": range(1), "last": range(max(0, known - last), known)}[strategy]


def streams(generator: torch.Generator) -> list[torch.Generator]:
    """A scene's random numbers for noise, picks and dropped conditions: the draws of one cannot shift another's."""
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
    """Views of S scenes at their target poses, in that order: (S, T, C, H, W), float32, within the model's bound.

    Args:
        images: the input views (S, N, C, H, W), N >= 1, pictures in [-1, 1].  c2w: their poses (S, N, 4, 4).
        targets: poses of the views to make (S, T, 4, 4).  K: intrinsics in pixels (S, 3, 3), of all views of a scene.
        generators: one a scene; a scene's views do not depend on which scenes are sampled beside it, and the same
            generator gives the same noise under every strategy and guidance.
        strategy, last: which views may condition, see ``candidates``; at every step one of them is drawn.
        steps: denoising steps of a view; 256 in the paper.
        guidance_scale: eps_u + s (eps_c - eps_u), so 1 is none and 0 ignores the condition. Other than 0 and 1, each
            step asks the network for twice as many pictures. A weight w of the form (1 + w) eps_c - w eps_u, as in the
            public port, is s = 1 + w; the paper gives 3 for SRN cars and 2 for chairs without saying of which form.
        progress: called after each step with (steps done, steps in all, clean views predicted now (S, C, H, W)).

    The model is used as it is (a network should be in ``eval`` mode) and runs in the surrounding autocast; everything
    else is float32. Raises ValueError when the shapes do not belong together.
    """
    check_scenes(images, c2w, targets, K, generators)
    scenes, inputs, count = len(images), images.shape[1], targets.shape[1]
    rows = torch.arange(scenes, device=images.device)
    noise, picks, dropped = zip(*map(streams, generators), strict=True)
    views = torch.cat([images.float(), images.new_zeros(scenes, count, *images.shape[2:], dtype=torch.float32)], dim=1)
    poses = torch.cat([c2w, targets], dim=1).float()
    levels = logsnr_steps(steps).to(images.device)
    for made in range(count):
        here, choice = inputs + made, candidates(strategy, inputs + made, last)
        z = fresh_noise(views[:, 0], noise)
        for step in range(steps):
            drawn = [int(torch.randint(len(choice), (), generator=g, device=g.device)) for g in picks]
            picked = torch.tensor([choice[k] for k in drawn], device=images.device)
            pair = torch.stack([poses[rows, picked], poses[:, here]], dim=1)
            blank = fresh_noise(z, dropped)
            x0 = guided_x0(model, views[rows, picked], blank, z, levels[step], pair, K, guidance_scale)
            x0 = bounded(model, x0)
            z, variance = posterior(z, x0, levels[step], levels[step + 1])
            if step + 1 < steps:
                z = z + variance.sqrt() * fresh_noise(z, noise)
            if progress is not None:
                progress(made * steps + step + 1, count * steps, x0)
        views[:, here] = bounded(model, z)
    return views[:, inputs:]


def bounded(model: ViewModel, x: Tensor) -> Tensor:
    """Clean views cut off at the model's bound."""
    return x if model.clip is None else x.clamp(-model.clip, model.clip)


def guided_x0(
    model: ViewModel, x: Tensor, blank: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, guidance_scale: float
) -> Tensor:
    """The clean views (S, C, H, W) that the model sees in ``z`` at the level ``logsnr`` (), with guidance.

    Classifier-free guidance combines the outputs: as x0, eps and v are affine in each other for one z, it is the same
    in all of them. ``blank`` (S, C, H, W) is fresh noise, which takes the place of the condition ``x`` where it is
    dropped. A scale of 1 or 0 needs one of the two branches only, so the other is not asked for.
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


def check_scenes(
    images: Tensor, c2w: Tensor, targets: Tensor, K: Tensor, generators: Sequence[torch.Generator]
) -> None:
    """Raises ValueError that names what does not belong to the S scenes of N input views (S, N, C, H, W)."""
    if images.dim() != 5 or images.shape[1] < 1:
        raise ValueError(f"images has the shape {tuple(images.shape)}; it should be (scenes, views >= 1, C, H, W)")
    scenes, inputs = images.shape[:2]
    check_shapes(
        "these images need",
        c2w=(c2w, (scenes, inputs, 4, 4)),
        K=(K, (scenes, 3, 3)),
        targets=(targets, (scenes, *targets.shape[1:2], 4, 4)),
    )
    if (count := len({id(generator) for generator in generators})) != scenes:
        raise ValueError(f"{count} generators were given for {scenes} scenes; each needs its own")
