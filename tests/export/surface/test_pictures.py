"""Pictures of a field for its texture: from where they are taken, what they show, and what fitting to them gains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.ball_run import Ball, ball_run, register
from threedgen.config.sections import OrbitCameraConfig
from threedgen.export import task as export_run
from threedgen.export.asset import make_asset
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import open_run, view_of
from threedgen.export.shape.from_field import dense_surface
from threedgen.export.surface.pictures import FOV, around, field_pictures
from threedgen.representations.options import MarchConfig, OccupancyConfig
from threedgen.representations.volume.occupancy import OccupancyGrid

MARCH = MarchConfig(samples=96)
SMALL = AssetConfig(budget=400, texture=256, lods=(), collision="none", resolution=40, refine=6)


def test_cameras_stand_all_around_and_look_at_the_middle() -> None:
    cameras = around(60, 32, 2.0)
    place = cameras.c2w[:, :3, 3].numpy()
    assert np.allclose(np.linalg.norm(place, axis=1), 6, atol=1e-4)
    toward = -cameras.c2w[:, :3, 2].numpy()
    assert np.allclose(toward, -place / 6, atol=1e-5)
    directions = place / 6
    near = np.arccos(np.clip(directions @ directions.T - 2 * np.eye(60), -1, 1)).min(axis=1)
    assert near.min() > np.radians(12), "two cameras stand in one place"
    assert OrbitCameraConfig().fov == pytest.approx(np.degrees(FOV))


def test_pictures_are_the_unlit_colours_and_what_is_hidden() -> None:
    rgb, opacity = field_pictures(Ball(), None, MARCH)(around(3, 40))
    assert rgb.shape == (3, 40, 40, 3) and opacity.shape == (3, 40, 40)
    assert rgb.min() >= 0 and rgb.max() <= 1 and 0 <= opacity.min() and opacity.max() <= 1.0001
    solid = rgb[opacity > 0.95]
    assert 0.02 < (opacity > 0.95).mean() < 0.5 and opacity[:, 0, 0].max() < 0.01
    assert (np.abs(solid - [0.9975, 0.0025, 0.0025]).max(1) < 0.1).any(), "the red half"
    assert np.minimum(solid[:, 0], solid[:, 2]).max() < 0.6, "red and blue, not mixed with a background"


def test_an_occupancy_grid_changes_nothing_but_the_time() -> None:
    grid = OccupancyGrid(OccupancyConfig(resolution=16), 1.0, 0.03)
    field = Ball()
    centres = (torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"), -1) + 0.5) / 8 - 1
    near = field.density(centres.view(-1, 3)).view(16, 16, 16)
    grid.binary.copy_(torch.nn.functional.max_pool3d(near[None, None], 3, 1, 1)[0, 0] > 1e-3)
    assert grid.binary.float().mean() < 0.6
    plain = field_pictures(field, None, MARCH)(around(2, 24))
    skipping = field_pictures(field, grid, MARCH)(around(2, 24))
    assert np.abs(plain[1] - skipping[1]).max() < 0.01
    assert np.array_equal(view_of(field, grid, MARCH, "cpu").mask, grid.binary.numpy())


def test_fitting_brings_the_texture_nearer_to_the_pictures() -> None:
    view = view_of(Ball(), None, MARCH, "cpu")
    dense, _ = dense_surface(view, 40)
    grey = replace(view, colour=lambda x: 0.5 + 0 * x)
    pale = make_asset(dense, SMALL, "ball", grey)
    told = pale.figures["refine"]
    assert told["views"] == 6 and told["pixels"] > 500
    assert told["psnr_after"] > told["psnr_before"] + 3
    plain = make_asset(dense, SMALL, "ball", replace(grey, pictures=None))
    assert "refine" not in plain.figures and plain.files["ball.glb"] != pale.files["ball.glb"]


def test_pictures_that_show_nothing_leave_the_texture_as_it_is() -> None:
    view = view_of(Ball(), None, MARCH, "cpu")
    dense, _ = dense_surface(view, 40)
    nothing = replace(view, pictures=lambda cameras: (np.zeros((6, 64, 64, 3)), np.zeros((6, 64, 64))))
    asset = make_asset(dense, SMALL, "ball", nothing)
    assert "no pixel" in asset.figures["refine"]["skipped"] and not asset.notes and "ball.glb" in asset.files


def test_a_run_is_refined_unless_it_is_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    source = open_run(ball_run(tmp_path / "run", "march.samples=64"))
    refined = export_run.export(source, SMALL)
    assert refined.figures["refine"]["psnr_after"] >= refined.figures["refine"]["psnr_before"]
    assert {"pictures", "refine"} <= refined.seconds.keys()
    plain = export_run.export(source, SMALL.model_copy(update={"refine": 0}))
    assert "refine" not in plain.figures
