"""What a novel-view model is to those who train it, sample from it and keep it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from .sampler import PairModel


class ViewModel(PairModel, Protocol):
    """A ``PairModel`` that knows pictures: those of ``picture_size``, or latents that it makes of them itself.

    ``unet`` is the module in which its time goes.
    """

    unet: nn.Module

    @property
    def clip(self) -> float | None:
        """Bound of what it predicts; None for latents."""
        ...

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def from_pictures(self, rgb: Tensor) -> Tensor:
        """Pictures (N, H, W, 3) in [0, 1] -> what it is given as ``x`` (N, C, h, w)."""
        ...

    def to_pictures(self, x: Tensor) -> Tensor:
        """The way back, into [0, 1]."""
        ...
