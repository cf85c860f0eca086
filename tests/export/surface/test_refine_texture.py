from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.mesh_render import render
from tests.support.ball_run import Ball
from tests.support.globe import globe
from threedgen.export.asset import make_asset
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import field_view
from threedgen.export.shape.from_field import dense_surface
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.surface import refine_texture as module
from threedgen.export.surface.refine_texture import PixelTargets, predict, refine_texture, sample_pixels
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import rasterise_uv
from threedgen.geometry.rigs import orbit
from threedgen.geometry.texture import fill
from threedgen.representations.volume.options import MarchConfig

SIZE = 48
GLOBE = globe(48, 24)


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


def photographs(sphere: TexturedMesh, texture: np.ndarray, cameras: Cameras):
    """Return c2w, fov, targets and masks for `refine_texture`."""
    image = render(sphere.vertices, sphere.faces, cameras.c2w.numpy(), 0.75, SIZE, sphere.uv, texture, supersample=2)
    return cameras.c2w.numpy(), 0.75, image.rgb, image.alpha


def test_gradient_matches_finite_differences():
    rng = np.random.default_rng(0)
    texture = rng.random((5, 4, 3)).astype(np.float32)
    uv = rng.uniform(-0.1, 1.1, (30, 4, 2)).astype(np.float32)
    samples = PixelTargets(uv, rng.random((30, 3)).astype(np.float32))

    def half_square(t):
        return 0.5 * np.square(predict(t, samples).astype(np.float64) - samples.target).sum()

    grad = module.gradient(predict(texture, samples), samples, texture.shape)
    step = 0.25  # the loss is a quadratic, so central differences are exact for any step
    for j, i, c in np.ndindex(texture.shape):
        up, down = texture.copy(), texture.copy()
        up[j, i, c] += step
        down[j, i, c] -= step
        assert (half_square(up) - half_square(down)) / (2 * step) == pytest.approx(grad[j, i, c], abs=2e-5)


def test_refine_texture_sharpens_training_and_held_out_views():
    sphere, truth = GLOBE, checker()
    start = blurred(truth)
    views = photographs(sphere, truth, around(8))
    refined = refine_texture(start, sphere, *views)
    assert refined.psnr_after > refined.psnr_before + 5
    held_out = photographs(sphere, truth, around(3, azimuth=0.39, elevation=0.15))
    samples = sample_pixels(sphere, *held_out)
    before, after = (psnr(predict(t, samples), samples.target) for t in (start, refined.texture))
    assert after > before + 3
    assert refined.texture.min() >= 0 and refined.texture.max() <= 1 and refined.texture.dtype == np.float32
    assert refined.pixels == len(sample_pixels(sphere, *views).target) > 3000


def test_coarse_change_prevents_speckles(monkeypatch):
    """A dark texture with more texels than pixels brightens evenly."""
    sphere, truth = GLOBE, np.full((192, 384, 3), 0.6, np.float32)
    views = photographs(sphere, truth, around(5))
    samples = sample_pixels(sphere, *views)
    assert 2 < module.footprint(samples, truth.shape) < 6
    even = refine_texture(truth - 0.3, sphere, *views)
    monkeypatch.setattr(module, "footprint", lambda samples, shape: 1)
    speckled = refine_texture(truth - 0.3, sphere, *views)
    front = np.s_[70:120, 20:360]
    coarse, fine = (np.abs(np.diff(result.texture[front], axis=1)).mean() for result in (even, speckled))
    assert coarse < 0.4 * fine, (coarse, fine)
    assert np.abs(even.texture - truth)[front].mean() < np.abs(speckled.texture - truth)[front].mean() < 0.15


def test_refine_texture_keeps_hidden_texels():
    sphere, truth = GLOBE, checker()
    start = blurred(truth)
    views = photographs(sphere, truth, around(2, azimuth=-0.2).select([0]))  # from the front only
    refined = refine_texture(start, sphere, *views)
    assert 0.15 < refined.visible.mean() < 0.5
    assert np.array_equal(refined.texture[~refined.visible], start[~refined.visible])
    assert np.abs(refined.texture - start)[refined.visible].mean() > 0.02
    behind = np.s_[:, 36:60]  # u = 1/2 is the back
    assert not refined.visible[behind].any() and refined.visible[20:28, :6].all()


@pytest.mark.parametrize("shape", [(192, 384), (190, 385)])  # the second is no multiple of a texel of the change
def test_coarse_change_keeps_texels_two_pixels_away(shape: tuple[int, int]) -> None:
    sphere, truth = GLOBE, checker(*shape)
    start = blurred(truth)
    views = photographs(sphere, truth, around(2, azimuth=-0.2).select([0]))  # from the front only
    refined = refine_texture(start, sphere, *views)
    width = module.footprint(sample_pixels(sphere, *views), shape)
    assert 3 < width < 4
    far = ndimage.distance_transform_cdt(~refined.visible, "chessboard") > 2 * width  # along an axis
    assert far[:, shape[1] * 3 // 8 : shape[1] * 5 // 8].all() and far.mean() < 0.85
    assert np.array_equal(refined.texture[far], start[far])
    assert np.abs(refined.texture - start)[refined.visible].mean() > 0.02
    assert refined.psnr_after > refined.psnr_before + 2


def test_refine_texture_never_returns_a_worse_texture():
    sphere, truth = GLOBE, checker()
    views = photographs(sphere, truth, around(4))
    samples = sample_pixels(sphere, *views)
    same, before, after = module.optimise(truth, samples, steps=5)
    assert np.array_equal(same, truth) and after == before > 80
    _, before, after = module.optimise(blurred(truth), samples, steps=3, rate=50.0)
    assert after >= before


def test_refine_texture_ignores_masked_background():
    """The targets show a smaller sphere on green background."""
    sphere, truth = GLOBE, checker() * 0 + np.float32([0.5, 0.2, 0.6])
    small = replace(sphere, vertices=0.93 * sphere.vertices)
    cameras = around(6)
    c2w = cameras.c2w.numpy()
    image = render(small.vertices, small.faces, c2w, 0.75, SIZE, sphere.uv, truth, background=(0, 1, 0))
    refined = refine_texture(truth * 0.9, sphere, c2w, 0.75, image.rgb, image.alpha)
    assert np.abs(refined.texture - truth).max() < 0.08
    unmasked = refine_texture(truth * 0.9, sphere, c2w, 0.75, image.rgb, np.ones_like(image.alpha))
    assert np.abs(unmasked.texture - truth).max() > 0.2


def test_refine_texture_refills_the_background():
    sphere, whole = globe(48, 24, 0.5, 0.25), checker(64, 64)
    mask = rasterise_uv(sphere.uv, sphere.faces, 64).mask
    truth = fill(whole, mask)
    start = fill(blurred(whole), mask)
    refined = refine_texture(start, sphere, *photographs(sphere, truth, around(8)))
    kept = mask | refined.visible
    assert np.array_equal(refined.texture, fill(refined.texture, kept))
    assert not np.array_equal(refined.texture[~kept], start[~kept]) and refined.psnr_after > refined.psnr_before + 1


MARCH = MarchConfig(samples=96)
SMALL = AssetConfig(budget=400, texture=256, lods=(), collision="none", resolution=40, refine=6)


def test_refinement_improves_the_psnr_and_is_skipped_for_empty_renders() -> None:
    view = field_view(Ball(), None, MARCH, "cpu")
    dense, _ = dense_surface(view, 40)
    grey = replace(view, colour=lambda x: 0.5 + 0 * x)
    refined = make_asset(dense, SMALL, "ball", grey)
    figures = refined.figures["refine"]
    assert figures["views"] == 6 and figures["pixels"] > 500
    assert figures["psnr_after"] > figures["psnr_before"] + 3
    baked = make_asset(dense, SMALL, "ball", replace(grey, renderer=None))
    assert "refine" not in baked.figures and baked.files["ball.glb"] != refined.files["ball.glb"]
    empty = replace(grey, renderer=lambda cameras: (np.zeros((6, 64, 64, 3)), np.zeros((6, 64, 64))))
    skipped = make_asset(dense, SMALL, "ball", empty)
    assert skipped.figures["refine"].keys() == {"skipped"} and not skipped.notes and "ball.glb" in skipped.files
