"""Distillation losses of a noise level and a noise that are given, not drawn."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from threedgen.guidance.diffusion import Conditions
from threedgen.guidance.distillation.options import ReconstructionConfig, SDSConfig
from threedgen.guidance.distillation.sds import SDS, Distillation, Reconstruction
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
    """(loss, logs) of ``latents`` at ``t`` with ``noise``; ``options`` of the loss's config."""
    distil = kind((SDSConfig if kind is SDS else ReconstructionConfig)(**options), schedule)
    distil.draw = lambda *drawn: (t, noise, {})  # type: ignore[method-assign, assignment, misc]
    return distil(latents, denoise, Conditions(text, camera, n_view, negatives), 0, None)


sds_eps, reconstruction = partial(judge, SDS), partial(judge, Reconstruction)
