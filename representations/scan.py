"""Cumulative sums that have a deterministic implementation on every device."""

import torch
from torch import Tensor
from torch.nn import functional as F


def requires_deterministic() -> bool:
    """Return whether torch raises an error for nondeterministic algorithms (`trainer.deterministic=true`)."""
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled and not torch.is_deterministic_algorithms_warn_only_enabled()


def refuses_cumsum(device: torch.device) -> bool:
    """Return whether torch raises an error for a float `cumsum`. Its CUDA kernel has no deterministic version."""
    return device.type == "cuda" and requires_deterministic()


def cumsum(values: Tensor, dim: int) -> Tensor:
    """Return `values.cumsum(dim)`. It also works on CUDA with deterministic algorithms."""
    return sum_of_shifts(values, dim) if refuses_cumsum(values.device) else values.cumsum(dim)


def sum_of_shifts(values: Tensor, dim: int) -> Tensor:
    """Return the cumulative sum of `values` along `dim` in log2(size) tensor additions (Hillis and Steele 1986)."""
    total, shift = values.movedim(dim, -1), 1
    while shift < total.shape[-1]:
        total = total + F.pad(total[..., :-shift], (shift, 0))
        shift *= 2
    return total.movedim(-1, dim)
