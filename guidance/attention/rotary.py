"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) by places in the world, for attention between views.

A token stands for the point of its pixel on the plane through the object's centre that faces its camera.  Queries and
keys are rotated by the coordinates of these points, so their product depends on how far apart two points are in the
world, not on where they lie in their images: a pixel and its mirror image in the opposite view have the same place.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF_EXTENT = 0.95
"""Half the side of that plane within the image: cameras of the toybox stand at about 0.95 / tan(fov / 2)."""
LOWEST, HIGHEST = 1.0, 25.0
"""Frequencies in radians for each unit of length; the highest has a period of two latent pixels."""


class WorldRotary:
    """Rotations of the tokens of B images by their places; made once for a call of a network."""

    def __init__(self, camera: Tensor | None, batch: int, device: torch.device) -> None:
        """Prepare a call; `camera`: camera vectors (B, 16), None: front views."""
        if camera is None:
            front = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], device=device)
            pose = front.expand(batch, 3, 3)
        else:
            pose = camera.float().unflatten(1, (4, 4))[:, :3, :3]
        self.right, self.up = pose[:, :, 0], pose[:, :, 1]
        self.tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def table(self, tokens: int, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, D') for square images of L tokens and heads of ``width``, D' <= width / 2."""
        if (tokens, width) not in self.tables:
            side, count = round(tokens**0.5), width // 8
            frequencies = torch.logspace(0, 1, count, base=HIGHEST / LOWEST, device=self.up.device) * LOWEST
            u = torch.linspace(-1 + 1 / side, 1 - 1 / side, side, device=self.up.device)
            points = self.right[:, None, None] * u[:, None] - self.up[:, None, None] * u[:, None, None]  # (B, h, w, 3)
            angles = (HALF_EXTENT * points[..., None] * frequencies).flatten(3).flatten(1, 2)
            self.tables[tokens, width] = angles.cos(), angles.sin()
        return self.tables[tokens, width]

    def __call__(self, x: Tensor, n_view: int) -> Tensor:
        """Rotate queries or keys (B / n_view, H, n_view L, D); the last dimensions of a head stay as they are."""
        cos, sin = (
            part.to(x.dtype).unflatten(0, (-1, n_view)).flatten(1, 2)[:, None]
            for part in self.table(x.shape[2] // n_view, x.shape[3])
        )
        half = cos.shape[-1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
