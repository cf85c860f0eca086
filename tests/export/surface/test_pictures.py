"""Renders of a field for its texture, and texture refinement in an export."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.ball_run import Ball
from threedgen.config.sections import OrbitCameraConfig
from threedgen.export.asset import make_asset
from threedgen.export.options import AssetConfig
from threedgen.export.renders import FOV, field_renderer, spiral_cameras
from threedgen.export.run_field import field_view
from threedgen.export.shape.from_field import dense_surface
from threedgen.representations.options import MarchConfig, OccupancyConfig
from threedgen.representations.volume.render import OccupancyGrid

MARCH = MarchConfig(samples=96)
SMALL = AssetConfig(budget=400, texture=256, lods=(), collision="none", resolution=40, refine=6)


def test_spiral_cameras_surround_and_face_the_origin() -> None:
    cameras = spiral_cameras(60, 32, 2.0)
    position = cameras.c2w[:, :3, 3].numpy()
    assert np.allclose(np.linalg.norm(position, axis=1), 6, atol=1e-4)
    forward = -cameras.c2w[:, :3, 2].numpy()
    assert np.allclose(forward, -position / 6, atol=1e-5)
    directions = position / 6
    spacing = np.arccos(np.clip(directions @ directions.T - 2 * np.eye(60), -1, 1)).min(axis=1)
    assert spacing.min() > np.radians(12)
    assert OrbitCameraConfig().fov == pytest.approx(np.degrees(FOV))


def test_field_renderer_returns_unlit_colours_and_opacity() -> None:
    rgb, opacity = field_renderer(Ball(), None, MARCH)(spiral_cameras(3, 40))
    assert rgb.shape == (3, 40, 40, 3) and opacity.shape == (3, 40, 40)
    assert rgb.min() >= 0 and rgb.max() <= 1 and 0 <= opacity.min() and opacity.max() <= 1.0001
    solid = rgb[opacity > 0.95]
    assert 0.02 < (opacity > 0.95).mean() < 0.5 and opacity[:, 0, 0].max() < 0.01
    assert (np.abs(solid - [0.9975, 0.0025, 0.0025]).max(1) < 0.1).any(), "the red half"
    assert np.minimum(solid[:, 0], solid[:, 2]).max() < 0.6, "red and blue, not mixed with a background"


def test_field_renderer_is_unchanged_by_an_occupancy_grid() -> None:
    grid = OccupancyGrid(OccupancyConfig(resolution=16), 1.0, 0.03)
    field = Ball()
    centres = (torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"), -1) + 0.5) / 8 - 1
    near = field.density(centres.view(-1, 3)).view(16, 16, 16)
    grid.binary.copy_(torch.nn.functional.max_pool3d(near[None, None], 3, 1, 1)[0, 0] > 1e-3)
    assert grid.binary.float().mean() < 0.6
    plain = field_renderer(field, None, MARCH)(spiral_cameras(2, 24))
    skipping = field_renderer(field, grid, MARCH)(spiral_cameras(2, 24))
    assert np.abs(plain[1] - skipping[1]).max() < 0.01
    assert np.array_equal(field_view(field, grid, MARCH, "cpu").mask, grid.binary.numpy())


def test_refinement_improves_the_psnr() -> None:
    view = field_view(Ball(), None, MARCH, "cpu")
    dense, _ = dense_surface(view, 40)
    grey = replace(view, colour=lambda x: 0.5 + 0 * x)
    refined = make_asset(dense, SMALL, "ball", grey)
    figures = refined.figures["refine"]
    assert figures["views"] == 6 and figures["pixels"] > 500
    assert figures["psnr_after"] > figures["psnr_before"] + 3
    baked = make_asset(dense, SMALL, "ball", replace(grey, renderer=None))
    assert "refine" not in baked.figures and baked.files["ball.glb"] != refined.files["ball.glb"]


def test_refinement_is_skipped_for_empty_renders() -> None:
    view = field_view(Ball(), None, MARCH, "cpu")
    dense, _ = dense_surface(view, 40)
    empty = replace(view, renderer=lambda cameras: (np.zeros((6, 64, 64, 3)), np.zeros((6, 64, 64))))
    asset = make_asset(dense, SMALL, "ball", empty)
    assert asset.figures["refine"].keys() == {"skipped"} and not asset.notes and "ball.glb" in asset.files
