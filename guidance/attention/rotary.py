"""Rotary position embedding of the views of an object: by 3D position, or by position in the image."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF_EXTENT = 0.95
"""Half the side, in world units, of the square that `WorldRotary` assumes to be visible; the toybox cameras are about
0.95 / tan(fov / 2) away from the object's centre."""
LOWEST, HIGHEST = 1.0, 25.0
"""Frequencies of `WorldRotary` in radians per world unit. The highest has a period of two pixels of 16 x 16 latents."""


class WorldRotary:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) for self-attention over the views of an object.

    An object of this class holds the cameras of a batch; a call rotates queries or keys and returns the same shape. The
    rotations make attention depend on the offset between the positions of query and key.

    The first, third, ... head of a layer rotates by 3D positions. The position of a token is the point, in world axes,
    where the ray of its pixel meets the plane through the world origin (the object's centre) that faces the camera. A
    pixel and its mirror image in the opposite view have the same point. The other heads rotate by the 2D position in
    the image, so that a token can attend to the same pixel of the other views; for a solid of revolution, that pixel
    looks the same in all of them.
    """

    def __init__(self, camera: Tensor | None, batch: int, device: torch.device) -> None:
        """Store the unit vectors "right" and "up", each (B, 3) in world axes, of B = `batch` cameras.

        `camera` holds camera vectors (B, 16): row-major 4 x 4 camera-to-world matrices. If it is None, all cameras are
        on the +x axis (front view), and the vectors are created on `device`, which is not used otherwise.
        """
        if camera is None:
            front = torch.eye(3, device=device).roll(1, 0)  # no copy from the host: a CUDA graph would refuse it
            pose = front.expand(batch, 3, 3)
        else:
            pose = camera.float().unflatten(1, (4, 4))[:, :3, :3]
        self.right, self.up = pose[:, :, 0], pose[:, :, 1]
        self.tables: dict[tuple[int, int, int, int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def table(self, tokens: int, width: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rotation angles of the B stored cameras, each (B, 2, L, D).

        An image has L = `tokens` tokens, a head D = `width` channels. The second index is 0 for heads that rotate by 3D
        positions, 1 for heads that rotate by 2D positions. A token has N = 6 (D // 16) angles in radians: each of its 3
        (or 2) coordinates times each of N / 3 (or N / 2) frequencies from 1 to 25 (`LOWEST`, `HIGHEST`).

        Angle k < N rotates the channels k and N + k. The cosines hold its cosine in both channels, the sines hold its
        negative sine in channel k and its sine in channel N + k. The channels from 2 N on are not rotated: their cosine
        is 1 and their sine 0.
        """
        side, count = round(tokens**0.5), 2 * (width // 16)  # even: as many angles from 2 dimensions as from 3
        u = HALF_EXTENT * torch.linspace(-1 + 1 / side, 1 - 1 / side, side, device=self.up.device)
        points = self.right[:, None, None] * u[:, None] - self.up[:, None, None] * u[:, None, None]  # (B, h, w, 3)
        pixels = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1).expand(*points.shape[:3], 2)
        angles = torch.stack([_angles(points, count), _angles(pixels, 3 * count // 2)], 1)
        cos, sin, rest = angles.cos(), angles.sin(), angles.new_ones(*angles.shape[:3], width - 6 * count)
        return torch.cat([cos, cos, rest], -1), torch.cat([-sin, sin, 0 * rest], -1)

    def __call__(self, x: Tensor, n_view: int) -> Tensor:
        """Rotate queries or keys x (B / n_view, H, n_view L, D) of the B cameras' images; return the same shape.

        There are H heads with D channels, and L tokens per image. The first 12 (D // 16) channels are rotated, the
        others unchanged.
        """
        heads, tokens, width = x.shape[1], x.shape[2] // n_view, x.shape[3]
        key = heads, n_view, tokens, width, x.dtype
        if key not in self.tables:
            kind = torch.arange(heads, device=x.device) % 2
            cos, sin = (
                part.to(x.dtype).unflatten(0, (-1, n_view)).transpose(1, 2).flatten(2, 3)[:, kind]
                for part in self.table(tokens, width)
            )
            self.tables[key] = cos, sin
        return Rotate.apply(x, *self.tables[key])


def _angles(positions: Tensor, count: int) -> Tensor:
    # (B, h, w, N) positions in N dimensions times `count` frequencies: (B, h w, N count)
    frequencies = torch.logspace(0, 1, count, base=HIGHEST / LOWEST, device=positions.device) * LOWEST
    return (positions[..., None] * frequencies).flatten(3).flatten(1, 2)


class Rotate(torch.autograd.Function):
    """Autograd function of `rotate`, for x, `cos` and `sin` (B, H, L, D) with H heads, L tokens and D channels.

    It rotates pairs of channels of x. Its backward pass rotates the gradient by the negative angles, which is faster
    than autograd through `rotate`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels of x (..., D): return x cos + y sin, where y is x with two groups of channels exchanged.

    `cos` and `sin` have the shape of x. With N = 6 * (D // 16), the groups are channels 0 to N - 1 and N to 2 N - 1;
    channel i is rotated with channel N + i. `sin` holds the negative sines for the first group and the sines for the
    second. In the remaining channels, which are not rotated, `cos` is 1 and `sin` is 0 (`WorldRotary.table`).
    """
    half = 6 * (x.shape[-1] // 16)
    exchanged = torch.cat([x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]], dim=-1)
    return (x * cos).addcmul_(exchanged, sin)
