"""What a novel-view model is to those who train it, sample from it and keep it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from .logsnr import Prediction


class ViewModel(Protocol):
    """Predicts a target view from one condition: pictures of ``picture_size``, or latents that it makes of them itself.

    ``unet`` is the module in which its time goes.
    """

    unet: nn.Module

    @property
    def prediction(self) -> Prediction:
        """What it predicts of the target."""
        ...

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

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """What ``prediction`` says, (B, C, H, W) float32.

        x (B, C, H, W) is the condition, noise where ``keep`` (B,) bool is False; z the noisy target at ``logsnr`` (B,);
        c2w (B, 2, 4, 4) of both, OpenGL axes; K (B, 3, 3) in pixels.
        """
        ...


def check_shapes(need: str, **given: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raises ValueError that names the first tensor of another shape than the one beside it; ``need``: who needs it."""
    for name, (tensor, shape) in given.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {need} {shape}")
