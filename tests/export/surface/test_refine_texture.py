"""Texture refinement: gradients against finite differences, pictures that come nearer, texels that are left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.mesh_render import render
from threedgen.config.errors import ConfigError
from threedgen.export.surface import refine_texture as refine_texture_module
from threedgen.export.surface.refine_texture import (
    Samples,
    footprint,
    gradient,
    optimise,
    predict,
    reads,
    refine_texture,
    sample_pixels,
)
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import rasterise_uv
from threedgen.geometry.rigs import orbit
from threedgen.geometry.texture import fill

SIZE = 48


@dataclass(frozen=True)
class Worn:
    """A mesh and where it wears its texture."""

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray


def globe(columns: int = 48, rows: int = 24, scale: float = 1.0, shift: float = 0.0) -> Worn:
    """A unit sphere; uv are longitude and latitude, in a part of the texture if scaled."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    k = np.arange(u.size).reshape(u.shape)
    a, b, c, d = k[:-1, :-1].ravel(), k[:-1, 1:].ravel(), k[1:, 1:].ravel(), k[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    longitude, latitude = 2 * math.pi * u.ravel(), math.pi * (v.ravel() - 0.5)
    flat = np.cos(latitude)
    vertices = np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], 1)
    return Worn(vertices, faces, np.stack([u.ravel(), v.ravel()], 1) * scale + shift)


def checker(height: int = 48, width: int = 96) -> np.ndarray:
    j, i = np.mgrid[:height, :width] // 6
    odd = ((i + j) % 2)[..., None]
    return np.where(odd, [0.9, 0.8, 0.2], [0.1, 0.2, 0.5]).astype(np.float32)


def blurred(texture: np.ndarray, times: int = 6) -> np.ndarray:
    for _ in range(times):
        for axis in (0, 1):
            texture = (np.roll(texture, 1, axis) + 2 * texture + np.roll(texture, -1, axis)) / 4
    return texture


def around(n: int, azimuth: float = 0.0, elevation: float = 0.3) -> Cameras:
    return orbit(n, elevation, 3.2, 0.75, SIZE, SIZE, azimuth=azimuth)


def photographs(worn: Worn, texture: np.ndarray, cameras: Cameras):
    """c2w, fov, targets and masks, as `refine_texture` takes them."""
    picture = render(worn.vertices, worn.faces, cameras.c2w.numpy(), 0.75, SIZE, worn.uv, texture, supersample=2)
    return cameras.c2w.numpy(), 0.75, picture.rgb, picture.alpha


def rays_of_a_sphere(cameras: Cameras):
    """Directions (V, H, W, 3) at which the rays meet the unit sphere, and which do; nothing of the rasteriser."""
    origins, directions = (t.double().numpy() for t in cameras.rays())
    along = -(origins * directions).sum(-1)
    inner = along**2 - (origins**2).sum(-1) + 1
    return origins + (along - np.sqrt(np.maximum(inner, 0)))[..., None] * directions, inner > 0


# ---------------------------------------------------------------- the gradient


def test_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(0)
    texture = rng.random((5, 4, 3)).astype(np.float32)
    samples = Samples(rng.uniform(-0.1, 1.1, (30, 4, 2)).astype(np.float32), rng.random((30, 3)).astype(np.float32))

    def half_square(t):
        return 0.5 * np.square(predict(t, samples).astype(np.float64) - samples.target).sum()

    slope = gradient(predict(texture, samples), samples, texture.shape)
    step = 0.25  # the loss is a quadratic, so central differences are exact for any step
    for j, i, c in np.ndindex(texture.shape):
        up, down = texture.copy(), texture.copy()
        up[j, i, c] += step
        down[j, i, c] -= step
        assert (half_square(up) - half_square(down)) / (2 * step) == pytest.approx(slope[j, i, c], abs=2e-5)


def test_what_texels_are_read_sums_to_the_pixels():
    rng = np.random.default_rng(1)
    samples = Samples(rng.random((50, 4, 2)).astype(np.float32), np.zeros((50, 3), np.float32))
    share = reads(samples, (7, 9))
    assert share.sum() == pytest.approx(50, rel=1e-5) and share.shape == (7, 9)
    one = Samples(np.full((1, 1, 2), 0.5, np.float32), np.zeros((1, 3), np.float32))
    assert reads(one, (4, 4))[1:3, 1:3].ravel().tolist() == [0.25] * 4 and reads(one, (4, 4)).sum() == 1


def test_adam_finds_the_least_squares_solution():
    """Each texel read alone, by two pixels that disagree: their mean, drawn towards the start by `stay`."""
    centres = (np.arange(4) + 0.5) / 4
    u, v = np.meshgrid(centres, 1 - centres)
    uv = np.repeat(np.stack([u, v], -1).reshape(16, 1, 2), 2, axis=0).astype(np.float32)
    target = np.tile([[0.4] * 3, [0.8] * 3], (16, 1)).astype(np.float32)
    start = np.full((4, 4, 3), 0.2, np.float32)
    free, before, after = optimise(start, Samples(uv, target), 300, 0.05, 0.0)
    assert np.allclose(free, 0.6, atol=2e-3) and before < after == pytest.approx(psnr(np.array(0.2), np.array(0.0)))
    held, _, _ = optimise(start, Samples(uv, target), 300, 0.05, 2.0)
    assert np.allclose(held, 0.4, atol=2e-3)


# ---------------------------------------------------------------- pictures


def test_a_blurred_checker_becomes_sharp_also_in_views_that_were_not_shown():
    worn, truth = globe(), checker()
    start = blurred(truth)
    given = photographs(worn, truth, around(8))
    refined = refine_texture(start, worn, *given, steps=60)
    assert refined.psnr_after > refined.psnr_before + 5
    fresh = photographs(worn, truth, around(3, azimuth=0.39, elevation=0.15))
    samples = sample_pixels(worn, *fresh)
    before, after = (psnr(predict(t, samples), samples.target) for t in (start, refined.texture))
    assert after > before + 3
    assert refined.texture.min() >= 0 and refined.texture.max() <= 1 and refined.texture.dtype == np.float32
    assert refined.pixels == len(sample_pixels(worn, *given).target) > 3000


def test_pictures_by_ray_casting_improve_the_texture():
    """Targets that know neither mesh nor texture: stripes on a round sphere, seen through pixel centres."""
    cameras = around(10)
    point, hit = rays_of_a_sphere(cameras)
    stripes = 0.5 + 0.4 * np.sin(9 * point[..., 2:] + np.array([0, 1, 2.0]))
    targets = np.where(hit[..., None], stripes, 1.0)
    v = 1 - (np.arange(64) + 0.5) / 64
    z = np.sin(math.pi * (v - 0.5))[:, None, None]
    exact = np.broadcast_to(0.5 + 0.4 * np.sin(9 * z + np.array([0, 1, 2.0])), (64, 128, 3)).astype(np.float32)
    start = np.clip(0.7 * blurred(exact, 20) + 0.2, 0, 1)  # too pale and too soft
    arguments = (globe(), cameras.c2w.numpy(), 0.75, targets, hit.astype(np.float32))
    refined = refine_texture(start, *arguments, supersample=1)
    assert refined.psnr_before < 25 and refined.psnr_after > refined.psnr_before + 8
    seen = refined.seen
    assert seen.mean() > 0.6
    assert np.abs(refined.texture - exact)[seen].mean() < 0.5 * np.abs(start - exact)[seen].mean()


def test_no_texel_of_a_pixel_stays_behind(monkeypatch):
    """A texture much finer than the pictures that is all too dark becomes brighter evenly, not in speckles."""
    worn, truth = globe(), np.full((192, 384, 3), 0.6, np.float32)
    given = photographs(worn, truth, around(5))
    samples = sample_pixels(worn, *given)
    assert 2 < footprint(samples, truth.shape) < 6
    even = refine_texture(truth - 0.3, worn, *given)
    monkeypatch.setattr(refine_texture_module, "SPREAD", 0)
    speckled = refine_texture(truth - 0.3, worn, *given)
    near = np.s_[70:120, 20:360]  # the middle latitudes, looked at from the front
    rough, before = (np.abs(np.diff(found.texture[near], axis=1)).mean() for found in (even, speckled))
    assert rough < 0.4 * before, (rough, before)
    assert np.abs(even.texture - truth)[near].mean() < np.abs(speckled.texture - truth)[near].mean() < 0.15


def test_texels_that_nobody_sees_keep_their_value():
    worn, truth = globe(), checker()
    start = blurred(truth)
    given = photographs(worn, truth, around(2, azimuth=-0.2).select([0]))  # from the front only
    refined = refine_texture(start, worn, *given)
    assert 0.15 < refined.seen.mean() < 0.5
    assert np.array_equal(refined.texture[~refined.seen], start[~refined.seen])
    assert np.abs(refined.texture - start)[refined.seen].mean() > 0.02
    behind = np.s_[:, 36:60]  # u = 1/2 is the back
    assert not refined.seen[behind].any() and refined.seen[20:28, :6].all()


def test_a_texture_that_is_right_stays_and_a_worse_one_is_never_returned():
    worn, truth = globe(), checker()
    given = photographs(worn, truth, around(4))
    same = refine_texture(truth, worn, *given, steps=5)
    assert np.array_equal(same.texture, truth) and same.psnr_after == same.psnr_before > 80
    start = blurred(truth)
    wild = refine_texture(start, worn, *given, steps=3, rate=50.0)
    assert wild.psnr_after >= wild.psnr_before
    none = refine_texture(start, worn, *given, steps=0)
    assert np.array_equal(none.texture, start) and none.psnr_after == none.psnr_before


def test_the_background_of_the_targets_does_not_come_in():
    """The pictures show a smaller sphere on bright green; the mask says where."""
    worn, truth = globe(), checker() * 0 + np.float32([0.5, 0.2, 0.6])
    small = Worn(0.93 * worn.vertices, worn.faces, worn.uv)
    cameras = around(6)
    picture = render(small.vertices, small.faces, cameras.c2w.numpy(), 0.75, SIZE, worn.uv, truth, background=(0, 1, 0))
    arguments = (worn, cameras.c2w.numpy(), 0.75, picture.rgb)
    refined = refine_texture(truth * 0.9, *arguments, picture.alpha)
    assert np.abs(refined.texture - truth).max() < 0.08
    everything = refine_texture(truth * 0.9, *arguments, np.ones_like(picture.alpha))
    assert np.abs(everything.texture - truth).max() > 0.2  # so the mask did it


def test_gutters_follow_the_charts():
    worn, whole = globe(scale=0.5, shift=0.25), checker(64, 64)
    mask = rasterise_uv(worn.uv, worn.faces, 64).mask
    truth = fill(whole, mask)
    start = fill(blurred(whole), mask)
    refined = refine_texture(start, worn, *photographs(worn, truth, around(8)))
    kept = mask | refined.seen
    assert np.array_equal(refined.texture, fill(refined.texture, kept))
    assert not np.array_equal(refined.texture[~kept], start[~kept]) and refined.psnr_after > refined.psnr_before + 1


def test_what_does_not_fit_is_said():
    worn, texture = globe(8, 4), checker()
    c2w, fov, rgb, alpha = photographs(worn, texture, around(2))
    for arguments, words in [
        ((texture, worn, c2w, fov, rgb, 0 * alpha), "no pixel"),
        ((texture, worn, c2w, fov, rgb * np.nan, alpha), "not finite"),
        ((texture, Worn(worn.vertices, worn.faces + 40, worn.uv), c2w, fov, rgb, alpha), "vertices 40 to"),
        ((texture, Worn(worn.vertices, worn.faces[:0], worn.uv), c2w, fov, rgb, alpha), "without faces"),
    ]:
        with pytest.raises(ConfigError, match=words):
            refine_texture(*arguments)
