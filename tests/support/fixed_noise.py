"""Distillation losses with a fixed noise level and fixed noise."""

from functools import partial
from typing import Any

from torch import Tensor

from threedgen.guidance.guidance import Condition
from threedgen.guidance.losses.options import ReconstructionConfig, SDSConfig
from threedgen.guidance.losses.sds import SDS, Distillation, Reconstruction
from threedgen.guidance.schedule import Schedule


def judge(
    kind: type[Distillation],
    latents: Tensor,
    denoise: Any,
    text: Any,
    camera: Tensor | None,
    n_view: int,
    *,
    schedule: Schedule,
    t: Tensor,
    noise: Tensor,
    negatives: Any = None,
    **options: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """Return loss and logs of `latents` at `t` with `noise`; `options` of the loss's config."""
    distil = kind((SDSConfig if kind is SDS else ReconstructionConfig)(**options), schedule)
    distil.sample_noise = lambda *args: (t, noise, {})  # type: ignore[method-assign, assignment, misc]
    return distil(latents, denoise, Condition(text, camera, n_view, negatives), 0, None)


sds_eps, reconstruction = partial(judge, SDS), partial(judge, Reconstruction)
