"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) with world coordinates, for attention between views.

The position of a token is the point where its pixel meets the plane through the object's centre that faces the camera.
Queries and keys are rotated by the world coordinates of these points. Their product then depends on the offset between
two points in the world, not on their positions in the images. A pixel and its mirror image in the opposite view have
the same position.
"""

import torch
from torch import Tensor

HALF_EXTENT = 0.95
"""Half the side of the visible square of that plane, in world units; toybox cameras are about 0.95 / tan(fov / 2) away
from the object's centre."""
LOWEST, HIGHEST = 1.0, 25.0
"""Frequencies in radians per world unit; the highest has a period of two pixels of 16 x 16 latents."""


class WorldRotary:
    """Rotations of queries and keys for B images; `predict` makes one per network call for all attention layers."""

    def __init__(self, camera: Tensor | None, batch: int, device: torch.device) -> None:
        """Take camera vectors (B, 16), see `camera_vector`; None: all `batch` images are front views (camera at +x)."""
        if camera is None:
            front = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], device=device)
            pose = front.expand(batch, 3, 3)
        else:
            pose = camera.float().unflatten(1, (4, 4))[:, :3, :3]
        self.right, self.up = pose[:, :, 0], pose[:, :, 1]
        self.tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def table(self, tokens: int, width: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rotation angles, each (B, L, D') with D' = 3 (width // 8).

        Args:
            tokens: L, number of tokens of each image, which is square.
            width: features D of an attention head.
        """
        if (tokens, width) not in self.tables:
            side, count = round(tokens**0.5), width // 8
            frequencies = torch.logspace(0, 1, count, base=HIGHEST / LOWEST, device=self.up.device) * LOWEST
            u = torch.linspace(-1 + 1 / side, 1 - 1 / side, side, device=self.up.device)
            points = self.right[:, None, None] * u[:, None] - self.up[:, None, None] * u[:, None, None]  # (B, h, w, 3)
            angles = (HALF_EXTENT * points[..., None] * frequencies).flatten(3).flatten(1, 2)
            self.tables[tokens, width] = angles.cos(), angles.sin()
        return self.tables[tokens, width]

    def __call__(self, x: Tensor, n_view: int) -> Tensor:
        """Return rotated queries or keys, like `x` (B / n_view, H, n_view L, D), for H heads of D features.

        The first 2 D' features are rotated, see `table`; the remaining features do not change.
        """
        cos, sin = (
            part.to(x.dtype).unflatten(0, (-1, n_view)).flatten(1, 2)[:, None]
            for part in self.table(x.shape[2] // n_view, x.shape[3])
        )
        half = cos.shape[-1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
