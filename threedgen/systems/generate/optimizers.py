"""Optimizers of the registry: functions of the section `optimizer` and parameter groups."""

from __future__ import annotations

from typing import Any

from torch.optim import Adam, AdamW, Optimizer

from .options import AdamConfig, AdamWConfig

Groups = list[dict[str, Any]]
"""Parameter groups with `params` and `name`; the learning rates are factors of schedules, so `lr` is 1."""


def adam(options: AdamConfig, groups: Groups) -> Optimizer:
    """Return Adam."""
    return Adam(groups, lr=1.0, betas=options.betas, eps=options.eps, fused=True)


def adamw(options: AdamWConfig, groups: Groups) -> Optimizer:
    """Return AdamW."""
    decay = options.weight_decay
    return AdamW(groups, lr=1.0, betas=options.betas, eps=options.eps, weight_decay=decay, fused=True)
