"""Optimizers in the registry. Each is a function of the config section `optimizer` and the parameter groups."""

from typing import Any

from torch.optim import Adam, AdamW, Optimizer

from .options import AdamConfig, AdamWConfig

BETAS, EPS = (0.9, 0.99), 1e-15
Groups = list[dict[str, Any]]
"""PyTorch parameter groups with the keys `params` and `name`. Schedules multiply the base learning rate of 1."""


def adam(options: AdamConfig, groups: Groups) -> Optimizer:
    return Adam(groups, lr=1.0, betas=BETAS, eps=EPS, fused=True)


def adamw(options: AdamWConfig, groups: Groups) -> Optimizer:
    return AdamW(groups, lr=1.0, betas=BETAS, eps=EPS, weight_decay=0.01, fused=True)
