"""3 x 3 convolutions in a quarter of the products, for CPUs that compute in float32.

Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016, arXiv 1509.09308): tiles of 6 x 6 pixels, four apart, are transformed
(B^T d B), multiplied with the transformed kernels channel by channel, and give 4 x 4 pixels of the result (A^T m A).
Both transforms are one kernel, `_analyse`, or its transpose, `_synthesise`, and so are those of the gradients. Results
differ from the direct sums by about 3e-6 of their size.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from threedgen.run.dtypes import bf16_cpu

Array = NDArray[np.float32]
N = TypeVar("N", bound=nn.Module)

TILE, STEP = 6, 4
B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
A = np.array(  # of the 4 x 4 results of a tile; as columns of zeros what they do not reach
    [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, -1, 1, -1, 0, 0],
        [1, 2, 4, 8, 0, 0],
        [1, -2, 4, -8, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ],
    np.float32,
)
G = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
KERNELS = torch.kron(G, G)
"""(36, 9): vec(G g G^T) = KERNELS vec(g)."""
AROUND, WITHIN = 1, 0
"""Where a tile begins: a pixel before its results, or with them."""
LEAST_CHANNELS = 64
LEAST_TILES, BLOCK = 32, 256
"""For fewer, transforming the kernels costs more than is saved; so many at a time, as a cache holds no more."""


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution that computes as above where that is faster, and as PyTorch does elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        if _is_faster(input):
            return _Winograd.apply(input, self.weight, self.bias)
        return super().forward(input)


def quick(network: N) -> N:
    """Makes those convolutions of a network quick that can be; names and tensors stay. Returns it."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _can_be(module):
            module.__class__ = Convolution
    return network


def _can_be(module: nn.Conv2d) -> bool:
    shape = module.kernel_size, module.stride, module.dilation, module.padding
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and module.groups == 1 and module.padding_mode == "zeros"
    return plain and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS


def _is_faster(x: Tensor) -> bool:
    """Not on a GPU, nor where bfloat16 has instructions; and the sides are of whole tiles, enough of them."""
    whole = x.ndim == 4 and x.shape[2] % STEP == x.shape[3] % STEP == 0
    whole = whole and x.numel() >= LEAST_TILES * STEP**2 * x.shape[1]
    plain = x.device.type == "cpu" and x.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
    return whole and plain and not bf16_cpu()


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pixels = x.detach().permute(0, 2, 3, 1).contiguous()
        kernels = (KERNELS @ weight.detach().flatten(2).flatten(0, 1).T).view(-1, *weight.shape[:2])  # (36, O, C)
        out = pixels.new_empty(*pixels.shape[:3], len(weight))
        for part in _blocks(pixels):
            tiles = _tiles(pixels[part], AROUND, B_T)
            _put(tiles @ kernels.mT, WITHIN, A, out[part])
        if bias is not None:
            out += bias.detach()
        ctx.save_for_backward(pixels, kernels)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (pixels, kernels), (wants_x, wants_weight, wants_bias) = ctx.saved_tensors, ctx.needs_input_grad
        grad = grad.permute(0, 2, 3, 1).contiguous()
        grad_x = torch.empty_like(pixels) if wants_x else None
        grad_kernels = torch.zeros_like(kernels) if wants_weight else None
        for part in _blocks(pixels):
            tiles = _tiles(grad[part], WITHIN, A)
            if grad_x is not None:
                _put(tiles @ kernels, AROUND, B_T, grad_x[part])
            if grad_kernels is not None:
                grad_kernels.baddbmm_(tiles.mT, _tiles(pixels[part], AROUND, B_T))
        weight = None
        if grad_kernels is not None:
            weight = (KERNELS.T @ grad_kernels.flatten(1)).T.reshape(*kernels.shape[1:], 3, 3)
        bias = grad.sum((0, 1, 2)) if wants_bias else None
        return grad_x if grad_x is None else grad_x.permute(0, 3, 1, 2), weight, bias


def _blocks(pixels: Tensor) -> list[slice]:
    """Of images, so that about BLOCK tiles are in each."""
    each = max(1, BLOCK * STEP**2 // (pixels.shape[1] * pixels.shape[2]))
    return [slice(first, first + each) for first in range(0, len(pixels), each)]


def _tiles(pixels: Tensor, offset: int, matrix: Array) -> Tensor:
    """(B, H, W, C) -> (36, tiles, C)."""
    images, height, width, channels = pixels.shape
    out = pixels.new_empty(TILE**2, images * height * width // STEP**2, channels)
    _analyse(pixels.numpy(), offset, matrix, out.numpy())
    return out


def _put(tiles: Tensor, offset: int, matrix: Array, pixels: Tensor) -> None:
    """The transpose of `_tiles`, into ``pixels``."""
    _synthesise(tiles.numpy(), offset, matrix, pixels.numpy())


@numba.njit(cache=True, fastmath=True, nogil=True)
def _analyse(pixels: Array, offset: int, matrix: Array, out: Array) -> None:
    """out[6 i + j, tile] = (matrix tile matrix^T)[i, j]; around the picture is black."""
    images, height, width, channels = pixels.shape
    framed = np.zeros((height + 2, width + 2, channels), np.float32)
    half = np.empty((TILE, TILE, channels), np.float32)
    tile = 0
    for image in range(images):
        framed[offset : offset + height, offset : offset + width] = pixels[image]
        for y in range(0, height, STEP):
            for x in range(0, width, STEP):
                for i in range(TILE):
                    a, b, c, d, e, f = (
                        matrix[i, 0],
                        matrix[i, 1],
                        matrix[i, 2],
                        matrix[i, 3],
                        matrix[i, 4],
                        matrix[i, 5],
                    )
                    for j in range(TILE):
                        for k in range(channels):  # written out, as only then it becomes vector instructions
                            near = a * framed[y, x + j, k] + b * framed[y + 1, x + j, k] + c * framed[y + 2, x + j, k]
                            far = (
                                d * framed[y + 3, x + j, k] + e * framed[y + 4, x + j, k] + f * framed[y + 5, x + j, k]
                            )
                            half[i, j, k] = near + far
                for j in range(TILE):
                    a, b, c, d, e, f = (
                        matrix[j, 0],
                        matrix[j, 1],
                        matrix[j, 2],
                        matrix[j, 3],
                        matrix[j, 4],
                        matrix[j, 5],
                    )
                    for i in range(TILE):
                        for k in range(channels):
                            near = a * half[i, 0, k] + b * half[i, 1, k] + c * half[i, 2, k]
                            far = d * half[i, 3, k] + e * half[i, 4, k] + f * half[i, 5, k]
                            out[TILE * i + j, tile, k] = near + far
                tile += 1


@numba.njit(cache=True, fastmath=True, nogil=True)
def _synthesise(tiles: Array, offset: int, matrix: Array, out: Array) -> None:
    """out = the sum of matrix^T tile matrix, each where `_analyse` took it."""
    images, height, width, channels = out.shape
    framed = np.empty((height + 2, width + 2, channels), np.float32)
    half = np.empty((TILE, TILE, channels), np.float32)
    tile = 0
    for image in range(images):
        framed[:] = 0
        for y in range(0, height, STEP):
            for x in range(0, width, STEP):
                for j in range(TILE):
                    a, b, c, d, e, f = (
                        matrix[0, j],
                        matrix[1, j],
                        matrix[2, j],
                        matrix[3, j],
                        matrix[4, j],
                        matrix[5, j],
                    )
                    for i in range(TILE):
                        for k in range(channels):
                            at = TILE * i
                            near = a * tiles[at, tile, k] + b * tiles[at + 1, tile, k] + c * tiles[at + 2, tile, k]
                            far = d * tiles[at + 3, tile, k] + e * tiles[at + 4, tile, k] + f * tiles[at + 5, tile, k]
                            half[i, j, k] = near + far
                for i in range(TILE):
                    a, b, c, d, e, f = (
                        matrix[0, i],
                        matrix[1, i],
                        matrix[2, i],
                        matrix[3, i],
                        matrix[4, i],
                        matrix[5, i],
                    )
                    for j in range(TILE):
                        for k in range(channels):
                            near = a * half[0, j, k] + b * half[1, j, k] + c * half[2, j, k]
                            far = d * half[3, j, k] + e * half[4, j, k] + f * half[5, j, k]
                            framed[y + i, x + j, k] += near + far
                tile += 1
        out[image] = framed[offset : offset + height, offset : offset + width]
