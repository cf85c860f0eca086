"""Ancestral sampling of views one after the other, many scenes at once (3DiM, sections 2.2 and 7.3).

A view's chain starts from noise; at every step one of the views that are there (``conditioning``) is its condition.
When the chain ends, its view joins them. With ``steps`` = 1 this is the one-step regression: a network that predicts
the "sample" is asked once, of white noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from threedgen.guidance.diffusion import combine

from .conditioning import Strategy, every_view
from .logsnr import Prediction, logsnr_steps, posterior, x0_from_output

Progress = Callable[[int, int, Tensor], None]


class PairModel(Protocol):
    """Predicts a target view from one condition: ``XUNet`` is one, anything with these two is another."""

    @property
    def prediction(self) -> Prediction: ...

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """What ``prediction`` says, (B, C, H, W) float32.

        x (B, C, H, W) is the condition, noise where ``keep`` (B,) bool is False; z the noisy target at ``logsnr`` (B,);
        c2w (B, 2, 4, 4) of both, OpenGL axes; K (B, 3, 3) in pixels.
        """
        ...


class Streams(NamedTuple):
    """The random numbers of a scene, by purpose: one strategy's draws cannot shift another's noise."""

    noise: torch.Generator
    picks: torch.Generator
    dropped: torch.Generator

    @classmethod
    def of(cls, generator: torch.Generator) -> Streams:
        seeds = torch.randint(2**62, (3,), generator=generator, device=generator.device).tolist()
        return cls(*(torch.Generator(generator.device).manual_seed(seed) for seed in seeds))


@torch.no_grad()
def sample_views(
    model: PairModel,
    images: Tensor,
    c2w: Tensor,
    targets: Tensor,
    K: Tensor,
    generators: Sequence[torch.Generator],
    strategy: Strategy = every_view,
    steps: int = 256,
    guidance_scale: float = 1.0,
    clip: float | None = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Views of S scenes at their target poses, in that order: (S, T, C, H, W), float32, within [-clip, clip].

    Args:
        images: the input views (S, N, C, H, W), N >= 1, pictures in [-1, 1].  c2w: their poses (S, N, 4, 4).
        targets: poses of the views to make (S, T, 4, 4).  K: intrinsics in pixels (S, 3, 3), of all views of a scene.
        generators: one a scene; a scene's views do not depend on which scenes are sampled beside it, and the same
            generator gives the same noise under every strategy and guidance.
        strategy: which views may condition, see ``conditioning``.
        steps: denoising steps of a view; 256 in the paper.
        guidance_scale: eps_u + s (eps_c - eps_u), so 1 is none and 0 ignores the condition. Other than 0 and 1, each
            step asks the network for twice as many pictures. A weight w of the form (1 + w) eps_c - w eps_u, as in the
            public port, is s = 1 + w; the paper gives 3 for SRN cars and 2 for chairs without saying of which form.
        clip: bound of the predicted clean views; None for latents.
        progress: called after each step with (steps done, steps in all, clean views predicted now (S, C, H, W)).

    The model is used as it is (a network should be in ``eval`` mode) and runs in the surrounding autocast; everything
    else is float32. Raises ValueError when the shapes do not belong together.
    """
    check_scenes(images, c2w, targets, K, generators)
    scenes, inputs, count = len(images), images.shape[1], targets.shape[1]
    rows = torch.arange(scenes, device=images.device)
    streams = [Streams.of(generator) for generator in generators]
    views = torch.cat([images.float(), images.new_zeros(scenes, count, *images.shape[2:], dtype=torch.float32)], dim=1)
    poses = torch.cat([c2w, targets], dim=1).float()
    levels = logsnr_steps(steps).to(images.device)
    for made in range(count):
        here, candidates = inputs + made, candidates_of(strategy, inputs, made)
        z = each(noise_like, views[:, 0], [s.noise for s in streams])
        for step in range(steps):
            picked = torch.tensor([pick(candidates, s.picks) for s in streams], device=images.device)
            pair = torch.stack([poses[rows, picked], poses[:, here]], dim=1)
            blank = each(noise_like, z, [s.dropped for s in streams])
            x0 = guided_x0(model, views[rows, picked], blank, z, levels[step], pair, K, guidance_scale)
            x0 = x0 if clip is None else x0.clamp(-clip, clip)
            z, variance = posterior(z, x0, levels[step], levels[step + 1])
            if step + 1 < steps:
                z = z + variance.sqrt() * each(noise_like, z, [s.noise for s in streams])
            if progress is not None:
                progress(made * steps + step + 1, count * steps, x0)
        views[:, here] = z if clip is None else z.clamp(-clip, clip)
    return views[:, inputs:]


def guided_x0(
    model: PairModel,
    x: Tensor,
    blank: Tensor,
    z: Tensor,
    logsnr: Tensor,
    c2w: Tensor,
    K: Tensor,
    guidance_scale: float,
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


def each(draw: Callable[[Tensor, torch.Generator], Tensor], like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One draw for each row of ``like``, from its own generator."""
    return torch.stack([draw(row, generator) for row, generator in zip(like, generators, strict=True)])


def noise_like(row: Tensor, generator: torch.Generator) -> Tensor:
    """Unit Gaussian noise, drawn where the generator lives: from a CPU one always the same."""
    return torch.randn(row.shape, generator=generator, device=generator.device).to(row.device)


def candidates_of(strategy: Strategy, inputs: int, generated: int) -> range:
    """Raises ValueError if the strategy offers nothing, or views that are not there yet."""
    candidates, known = strategy(inputs, generated), inputs + generated
    if not candidates or min(candidates) < 0 or max(candidates) >= known:
        raise ValueError(f"the strategy offers {candidates} as conditions, but the views are 0 to {known - 1}")
    return candidates


def pick(candidates: range, generator: torch.Generator) -> int:
    """One of the candidates, all equally likely."""
    drawn = torch.randint(len(candidates), (), generator=generator, device=generator.device)
    return candidates[int(drawn)]


def check_scenes(
    images: Tensor, c2w: Tensor, targets: Tensor, K: Tensor, generators: Sequence[torch.Generator]
) -> None:
    """Raises ValueError that names what does not belong to the S scenes of N input views (S, N, C, H, W)."""
    if images.dim() != 5 or images.shape[1] < 1:
        raise ValueError(f"images has the shape {tuple(images.shape)}; it should be (scenes, views >= 1, C, H, W)")
    scenes, inputs = images.shape[:2]
    wanted = {"c2w": (c2w, (scenes, inputs, 4, 4)), "K": (K, (scenes, 3, 3))}
    wanted["targets"] = targets, (scenes, *targets.shape[1:2], 4, 4)
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; these images need {shape}")
    if len(generators) != scenes:
        raise ValueError(f"{len(generators)} generators were given for {scenes} scenes; each needs its own")
    if len({id(generator) for generator in generators}) != scenes:
        raise ValueError("one generator was given for several scenes; each needs its own")
