"""Refine a baked texture: optimise its texels so that renders of the fixed mesh match renders of the field.

A baked texture stores the field's colour at one surface. Volume rendering integrates over a layer of some depth, and
the low-poly mesh does not lie exactly in that layer. The refinement reduces the difference. A pixel is the mean of
bilinear texture samples, so it is linear in the texels, and `texture.scatter` computes the gradient.

It optimises a change texture, which is added to the baked one. Its texels are about as large as an image pixel: with
smaller ones, those between the samples of a pixel would not change and appear as speckles.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from threedgen.config.errors import ConfigError
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.topology import area_vectors
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import interpolate, rasterise, rasterise_uv, unit
from threedgen.geometry.texture import fill, sample, scatter
from threedgen.run.arrays import Array

PRIOR_WEIGHT = 0.1
"""Weight of the squared change of a texel from its baked colour, in a loss in which a squared pixel error has weight 1.

Without this term, texels overfit to single views.
"""
MIN_OPACITY, MIN_COSINE = 0.95, 0.2
"""Minimum target opacity of compared pixels, and minimum cosine between surface normal and direction to the camera."""
STEPS, RATE = 60, 0.02  # Adam steps over all views at once; initial learning rate of a cosine schedule
SUPERSAMPLE = 2  # number of texture samples per pixel along each axis
ADAM_EPS = 1e-3  # epsilon of Adam. It makes texels with a small gradient change more slowly.


class Refined(NamedTuple):
    """Result of `refine_texture`: the refined `texture` (H, W, 3), and how well its renders match the target images.

    Only some pixels of the target images are compared: those that show an opaque part of the mesh, not too obliquely.

    Attributes:
        texture: (H, W, 3) in [0, 1], row 0 at v = 1.
        visible: (H, W) bool, the texels that a compared pixel shows.
        psnr_before, psnr_after: PSNR in dB of the compared pixels, with the input texture and with `texture`.
        pixels: number of compared pixels.
    """

    texture: Array  # (H, W, 3) float32 in [0, 1]
    visible: Array  # (H, W) bool, texels that contribute to a compared pixel
    psnr_before: float  # PSNR of the compared pixels with the baked texture, dB
    psnr_after: float  # PSNR of the compared pixels with the refined texture, dB
    pixels: int  # number of compared pixels


class PixelTargets(NamedTuple):
    """Target colours of P image pixels, and the texture coordinates (u, v) of S samples per pixel.

    `target` (P, 3) are the colours, sRGB in [0, 1]; `uv` (P, S, 2) are the texture coordinates in [0, 1], v upwards.
    The mean of the texture at the S samples of a pixel is compared with the pixel's target colour.
    """

    uv: Array  # (P, S, 2) float32, v upwards
    target: Array  # (P, 3) target colours


def refine_texture(texture: Array, mesh: TexturedMesh, c2w: Array, fov: float, targets: Array, masks: Array) -> Refined:
    """Optimise a texture so that renders of the mesh match the targets. Return the best texture found, or the input.

    A rendered pixel is the mean of the texture at 2 x 2 points (SUPERSAMPLE). It is compared only if all these points
    hit the mesh, if the cosine between normal and direction to the camera is at least 0.2 (MIN_COSINE) at each point,
    and if the pixel's opacity is at least 0.95 (MIN_OPACITY), because field and mesh differ near silhouettes. Only
    texels change that compared pixels show, or that are at most about two image pixels away. If the PSNR improves,
    texels that are outside all UV triangles of the mesh and not shown by compared pixels are filled again: they get the
    value of the nearest texel that is inside a triangle or shown.

    Args:
        texture: baked texture (H, W, 3), sRGB in [0, 1], row 0 at v = 1.
        mesh: mesh in world space.
        c2w: camera-to-world matrices (V, 4, 4) with OpenGL axes.
        fov: vertical field of view in radians.
        targets: renders of the field (V, h, w, 3), sRGB in [0, 1].
        masks: opacity of the renders (V, h, w) in [0, 1].

    Raises:
        ConfigError: if no pixel can be compared.
    """
    texture, targets = np.asarray(texture, np.float32), np.asarray(targets, np.float32)
    samples = sample_pixels(mesh, c2w, fov, targets, masks)
    best, before, after = optimise(texture, samples)
    weight = np.full((*samples.uv.shape[:2], 1), 1 / SUPERSAMPLE**2, np.float32)
    visible = scatter(weight, samples.uv, (texture.shape[0], texture.shape[1]))[..., 0] > 0
    if after > before:
        charts = rasterise_uv(mesh.uv, mesh.faces, (texture.shape[0], texture.shape[1])).mask
        best = fill(best, charts | visible)
    return Refined(best, visible, before, after, len(samples.target))


def sample_pixels(mesh: TexturedMesh, c2w: Array, fov: float, targets: Array, masks: Array) -> PixelTargets:
    """Return the target colours (P, 3) and texture coordinates (P, 4, 2) of the P pixels that can be compared.

    Each pixel is sampled at 2 x 2 points (SUPERSAMPLE). It can be compared if all four points hit the mesh, if the
    cosine between normal and direction to the camera is at least 0.2 (MIN_COSINE) at each point, and if the pixel's
    opacity is at least 0.95 (MIN_OPACITY). Raises ConfigError if there are no such pixels.

    Args:
        mesh: mesh with UVs, in world space.
        c2w: camera-to-world matrices (V, 4, 4) with OpenGL axes.
        fov: vertical field of view in radians.
        targets: renders of the field (V, h, w, 3), sRGB in [0, 1].
        masks: opacity of the renders (V, h, w) in [0, 1].
    """
    size = targets.shape[1] * SUPERSAMPLE, targets.shape[2] * SUPERSAMPLE
    vertices, normals = mesh.vertices.astype(np.float64), unit(area_vectors(mesh.vertices, mesh.faces))
    uvs, colours = [], []
    for v in range(len(c2w)):  # one by one: the buffers are supersample^2 times larger than the images
        buffers = rasterise(vertices, mesh.faces, c2w[v : v + 1], fov, size)
        toward = unit(c2w[v, :3, 3] - interpolate(vertices, mesh.faces, buffers)[0])
        facing = (toward * normals[buffers.face[0]]).sum(axis=-1) >= MIN_COSINE
        valid = _blocks(buffers.mask[0] & facing).all(axis=-1) & (masks[v] >= MIN_OPACITY)
        uv = interpolate(mesh.uv, mesh.faces, buffers)[0]
        uvs.append(np.stack([_blocks(uv[..., axis])[valid] for axis in range(2)], axis=-1))
        colours.append(targets[v][valid])
    samples = PixelTargets(np.concatenate(uvs).astype(np.float32), np.concatenate(colours).astype(np.float32))
    if not len(samples.target):
        raise ConfigError("no pixel of the target images shows the mesh; check cameras, masks and mesh")
    return samples


def optimise(
    texture: Array, samples: PixelTargets, steps: int = STEPS, rate: float = RATE
) -> tuple[Array, float, float]:
    """Minimise sum(squared pixel errors) + 0.1 (PRIOR_WEIGHT) * sum(squared texel changes), with `steps` Adam steps.

    Takes the baked texture (H, W, 3), the pixels to match as `samples`, and the initial learning `rate`. Returns the
    texture with the higher PSNR, baked or optimised, the PSNR of the pixels in dB with the baked texture, and the PSNR
    in dB with the returned texture.
    """
    factor, size = max(int(footprint(samples, texture.shape)), 1), texture.shape[:2]
    baked = predict(texture, samples)
    change = torch.zeros(max(size[0] // factor, 1), max(size[1] // factor, 1), 3)
    adam = torch.optim.Adam([change], lr=rate, betas=(0.9, 0.99), eps=ADAM_EPS, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    for _ in range(steps):
        grad = gradient(baked + predict(change.numpy(), samples), samples, change.shape)
        # one texel of `change` covers factor^2 texels
        change.grad = torch.from_numpy(grad).add_(change, alpha=PRIOR_WEIGHT * factor**2)
        adam.step()
        scheduler.step()
    fine = functional.interpolate(change.movedim(-1, 0)[None], size, mode="bilinear")[0].movedim(0, -1)
    refined = np.clip(texture + fine.numpy(), 0, 1)
    before, after = psnr(samples.target, baked), psnr(samples.target, predict(refined, samples))
    return (refined, before, after) if after > before else (texture, before, before)


def predict(texture: Array, samples: PixelTargets) -> Array:
    """Return the colours (P, 3) that the P pixels of `samples` have with a texture (H, W, 3).

    `samples.uv` has the texture coordinates of S points in each pixel. The colour of a pixel is the unweighted mean of
    the texture, sampled bilinearly, at its S points.
    """
    return torch.from_numpy(sample(texture, samples.uv)).mean(1).numpy()  # NumPy's mean is ten times slower here


def gradient(colours: Array, samples: PixelTargets, shape: tuple[int, ...]) -> Array:
    """Return the gradient (H, W, 3) of half the sum of the squared errors of P pixels, with respect to the texture.

    The error of a pixel is its colour with the present texture, `colours` (P, 3) from `predict`, minus its target in
    `samples`. `shape` is the shape of the texture.
    """
    error = (colours - samples.target) / samples.uv.shape[1]
    return scatter(np.broadcast_to(error[:, None], (*samples.uv.shape[:2], 3)), samples.uv, (shape[0], shape[1]))


def footprint(samples: PixelTargets, shape: tuple[int, ...]) -> float:
    """Return the median width of an image pixel on the texture, in texels. The texture has the shape (H, W, ...).

    The samples of a pixel are a square grid, row by row. The width is the distance between the first two samples times
    the number of samples per row. The result is 0 if pixels have only one sample.
    """
    side = math.isqrt(samples.uv.shape[1])
    if side < 2:
        return 0.0
    step = (samples.uv[:, 1] - samples.uv[:, 0]) * (shape[1], shape[0])
    return side * float(np.median(np.linalg.norm(step, axis=1)))


def _blocks(values: Array) -> Array:
    # (H f, W f) becomes (H, W, f f), where f is SUPERSAMPLE
    height, width = values.shape[0] // SUPERSAMPLE, values.shape[1] // SUPERSAMPLE
    return values.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).swapaxes(1, 2).reshape(height, width, -1)
