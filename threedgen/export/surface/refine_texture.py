"""Texture refinement: with the geometry fixed, the texels are optimised until the textured mesh looks like pictures
of the field.

A baked texture holds what the field says at the surface; a renderer sees the field's soft skin, and the simple mesh
lies a little beside it. What is left of that difference is taken out here, in the place where it will be seen. A
pixel's colour is the mean of bilinear readings, so it is linear in the texels, and its gradient is `texture.scatter`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.topology import area_vectors
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import checked, interpolate, rasterise, rasterise_uv, unit
from threedgen.geometry.texture import fill, sample, scatter
from threedgen.run.arrays import Array

STAY = 0.1
"""Weight of staying with the baked texel, in pixels: one seen by less than this hardly moves, whatever it is told.

Without it, texels that are smaller than pixels take in what differs from view to view. On 18 views of a toy with a
checker, 512 texels wide, SPREAD 0, views that were not shown came to 35.6, 36.5, 36.6, 36.3 dB with 0.01, 0.1, 0.3, 1
from 35.2 baked, and from colours that were too pale, 29.1 dB, to 36.0, 36.4, 36.1, 34.1.
"""
SPREAD = 0.5
"""Standard deviation, in pixels of the pictures, of the blur of the gradient: pictures cannot tell apart the texels of
one pixel, and without the blur those that no reading meets stay behind as speckles."""
OPAQUE, GRAZING = 0.95, 0.2
"""Which pixels are compared: opacity of the target, and cosine at which the mesh is seen, at least."""
SLOW = 1e-3
"""Adam's epsilon: a texel that is hardly seen goes slower than the rate."""


@dataclass(frozen=True)
class Refined:
    """texture (H, W, 3) float32 in [0, 1]; seen (H, W) bool: texels that any compared pixel reads, only these and those
    within a pixel of them were optimised; psnr_before and psnr_after, in dB, over the `pixels` that were compared."""

    texture: Array
    seen: Array
    psnr_before: float
    psnr_after: float
    pixels: int


@dataclass(frozen=True)
class Samples:
    """What the compared pixels see: uv (P, S, 2) float32, S readings for each; target (P, 3) float32."""

    uv: Array
    target: Array


def refine_texture(
    texture: Array,
    mesh: TexturedMesh,
    c2w: Array,
    fov: float,
    targets: Array,
    masks: Array,
    *,
    steps: int = 60,
    rate: float = 0.02,
    supersample: int = 2,
) -> Refined:
    """The texture (H, W, 3) in [0, 1], v up, with which a mesh looks most like targets (V, h, w, 3), sRGB in [0, 1].

    c2w (V, 4, 4) and fov as in `raster.rasterise`; masks (V, h, w) in [0, 1]: opacity of what the targets show.
    Compared are pixels that the mesh fills with faces seen at a cosine of at least GRAZING and whose mask reaches
    OPAQUE: near outlines field and mesh never quite agree. steps: of Adam over all views at once, with a rate that
    falls to 0. Texels further than a pixel from any that such a pixel reads keep their value to the last bit, but for
    those outside of all charts, which are filled again from the nearest. The best texture on the way is returned, the
    given one if none is better. Raises ConfigError if there is no pixel to compare, or if one is not finite.
    """
    texture, targets = np.asarray(texture, np.float32), np.asarray(targets, np.float32)
    samples = sample_pixels(mesh, c2w, fov, targets, masks, supersample)
    best, before, after = optimise(texture, samples, steps, rate)
    seen = reads(samples, texture.shape[:2]) > 0
    if after > before:
        charts = rasterise_uv(mesh.uv, mesh.faces, (texture.shape[0], texture.shape[1])).mask
        best = fill(best, charts | seen)
    return Refined(best, seen, before, after, len(samples.target))


def sample_pixels(
    mesh: TexturedMesh, c2w: Array, fov: float, targets: Array, masks: Array, supersample: int = 2
) -> Samples:
    """The pixels that can be compared and where in the texture they read; as in `refine_texture`, with its errors."""
    if not np.isfinite(targets[masks >= OPAQUE]).all():
        raise ConfigError("the targets of a texture have colours that are not finite")
    size = targets.shape[1] * supersample, targets.shape[2] * supersample
    vertices, faces = checked(mesh.vertices, mesh.faces, 3)
    if not len(faces):
        raise ConfigError("a mesh without faces wears no texture")
    normals = unit(area_vectors(vertices, faces))
    where, colours = [], []
    for v in range(len(c2w)):  # one by one: the buffers are supersample^2 times larger than the pictures
        buffers = rasterise(vertices, faces, c2w[v : v + 1], fov, size)
        toward = unit(np.asarray(c2w)[v, :3, 3] - interpolate(vertices, faces, buffers)[0])
        facing = (toward * normals[buffers.face[0]]).sum(axis=-1) >= GRAZING
        good = _blocks(buffers.mask[0] & facing, supersample).all(axis=-1) & (masks[v] >= OPAQUE)
        reading = interpolate(mesh.uv, faces, buffers)[0]
        where.append(np.stack([_blocks(reading[..., axis], supersample)[good] for axis in range(2)], axis=-1))
        colours.append(targets[v][good])
    samples = Samples(np.concatenate(where).astype(np.float32), np.concatenate(colours).astype(np.float32))
    if not len(samples.target):
        raise ConfigError("no pixel of the targets shows the mesh: cameras, masks and mesh do not belong together")
    return samples


def optimise(
    texture: Array, samples: Samples, steps: int, rate: float, stay: float = STAY
) -> tuple[Array, float, float]:
    """Adam (Kingma and Ba 2015) on the texels: half of the squared errors of the pixels, and `stay` times half of the
    squared way from where the texels were, summed up.

    Returns the texture for which that was least, and the PSNR before and after, which can only have grown.
    """
    start, texels = torch.from_numpy(texture), torch.from_numpy(texture.copy())
    adam = torch.optim.Adam([texels], lr=rate, betas=(0.9, 0.99), eps=SLOW, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    blur = SPREAD * footprint(samples, texture.shape)

    def loss() -> float:
        there = 0.5 * float(np.square(colours - samples.target).sum())
        return there + 0.5 * stay * float((texels - start).square_().sum())

    best, colours = texture, predict(texture, samples)
    before = after = psnr(samples.target, colours)
    least = loss()
    for _ in range(steps):
        slope = _blurred(torch.from_numpy(gradient(colours, samples, texture.shape)), blur)
        texels.grad = slope.add_(texels - start, alpha=stay)
        adam.step()
        falling.step()
        colours = predict(texels.clamp_(0, 1).numpy(), samples)
        now = loss()
        if now < least:
            best, least, after = texels.numpy().copy(), now, psnr(samples.target, colours)
    return best, before, after


def _blurred(values: Tensor, sigma: float) -> Tensor:
    """values (H, W, C) after a Gaussian of `sigma` texels, cut off at twice that; the outermost go on beyond.

    A blur by less than half a texel is left out. Not kornia's gaussian_blur2d, which takes two to seven times as long
    in this loop.
    """
    if sigma < 0.5:
        return values
    reach = int(2 * sigma + 0.5)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    bell /= bell.sum()
    for axis in (0, 1):
        size = values.shape[axis]
        beyond = values.index_select(axis, torch.arange(-reach, size + reach).clamp_(0, size - 1))
        values = beyond.narrow(axis, 0, size) * bell[0]
        for k in range(1, 2 * reach + 1):
            values.add_(beyond.narrow(axis, k, size), alpha=float(bell[k]))
    return values


def predict(texture: Array, samples: Samples) -> Array:
    """Colours (P, 3) of the pixels."""
    mean: Array = torch.from_numpy(sample(texture, samples.uv)).mean(1).numpy()  # numpy's is ten times slower here
    return mean


def gradient(colours: Array, samples: Samples, shape: tuple[int, ...]) -> Array:
    """Of half the sum of squared errors of pixels (P, 3), in the texels of a texture of `shape` (H, W, 3)."""
    error = (colours - samples.target) / samples.uv.shape[1]
    return scatter(np.broadcast_to(error[:, None], (*samples.uv.shape[:2], 3)), samples.uv, (shape[0], shape[1]))


def footprint(samples: Samples, shape: tuple[int, ...]) -> float:
    """How many texels of a texture of `shape` a pixel is wide, typically; 0 for a single reading in each."""
    side = math.isqrt(samples.uv.shape[1])
    if side < 2:
        return 0.0
    step = (samples.uv[:, 1] - samples.uv[:, 0]) * (shape[1], shape[0])
    return side * float(np.median(np.linalg.norm(step, axis=1)))


def reads(samples: Samples, shape: tuple[int, ...]) -> Array:
    """(H, W): how much of the pixels, in pixels, each texel makes up."""
    share = np.full((*samples.uv.shape[:2], 1), 1 / samples.uv.shape[1], np.float32)
    return scatter(share, samples.uv, (shape[0], shape[1]))[..., 0]


def _blocks(values: Array, factor: int) -> Array:
    """(H f, W f) to (H, W, f f): the samples of each pixel."""
    height, width = values.shape[0] // factor, values.shape[1] // factor
    return values.reshape(height, factor, width, factor).swapaxes(1, 2).reshape(height, width, -1)
