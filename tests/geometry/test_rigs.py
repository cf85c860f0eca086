"""Rigs: recorded reference batches, and what their draws share and spread."""

from __future__ import annotations

from math import degrees, pi, radians
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.geometry.test_poses import assert_rigid
from tests.support.parity_files import parity_files
from threedgen.config.sections import MultiviewCameraConfig, OrbitCameraConfig
from threedgen.geometry.poses import wrap_angle
from threedgen.geometry.rigs import Rig, cameras_from_draws, draw, orbit, sample_multiview, surround, turntable
from threedgen.run import seeding

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
TOLERANCE = 1e-5
MULTIVIEW, EVALUATION = parity_files("camera_mv_"), parity_files("camera_eval_")


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    arrays = dict(np.load(path).items())
    options = yaml.safe_load(str(arrays.pop("cfg_json")))
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, options


def close(got: Tensor, want: Tensor) -> None:
    """Largest difference relative to the largest value."""
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= TOLERANCE * max(float(want.abs().max()), 1.0)


def reference_options(cfg: dict) -> MultiviewCameraConfig:
    """threestudio's words for our options."""
    names = {
        "fovy_range": "fov_range",
        "camera_distance_range": "distance_range",
        "relative_radius": "relative_distance",
        "eval_elevation_deg": "progressive_elevation",
    }
    options = {names.get(name, name): value for name, value in cfg.items()}
    known = {name: value for name, value in options.items() if name in MultiviewCameraConfig.model_fields}
    quirks = {"elevation_reference": True, "light_reference": True, "progressive_until": 0}
    return MultiviewCameraConfig(**known | quirks)


def recorded_draws(recorded: dict[str, Tensor], strategy: str) -> dict[str, Tensor]:
    """The recorded numbers, in the order in which the reference asked for them, under our names."""
    order = ["elevation_coin", "elevation", "azimuth", "fov", "distance", "zoom"]
    order += ["camera_perturb", "center_perturb", "up_perturb", "light_distance"]
    order += ["light_direction"] if strategy == "dreamfusion" else ["light_azimuth", "light_elevation"]
    given_ = [recorded[name] for name in sorted(recorded) if name.startswith("draw")]
    return dict(zip(order, given_, strict=True))


def test_parity_files_are_there():
    assert MULTIVIEW and EVALUATION


@pytest.mark.parametrize("path", MULTIVIEW, ids=lambda path: path.stem)
def test_parity_multiview_batch(path):
    recorded, cfg = load(path)
    options = reference_options(cfg)
    draws = recorded_draws(recorded, options.light_sample_strategy)
    # The reference's range object widens over its first steps, also when it is meant to be off.
    ramp = min(1.0, int(recorded["step"]) / (cfg.get("progressive_until", 0) + 1))
    height, width = int(recorded["out_height"]), int(recorded["out_width"])
    rig = cameras_from_draws(options, draws, height, width, ramp)
    cameras = rig.cameras
    origins, directions = cameras.rays()
    close(cameras.c2w, recorded["out_c2w"])
    close(cameras.position, recorded["out_camera_positions"])
    close(rig.light, recorded["out_light_positions"])
    close(rig.elevation.rad2deg(), recorded["out_elevation"])
    close(rig.azimuth.rad2deg(), recorded["out_azimuth"])
    close(rig.distance, recorded["out_camera_distances"])
    close(cameras.fov.rad2deg(), recorded["out_fovy"])
    close(origins, recorded["out_rays_o"])
    close(directions, recorded["out_rays_d"])


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.stem)
def test_parity_evaluation_orbit(path):
    recorded, cfg = load(path)
    azimuth = recorded["azimuth_deg"]
    n = len(azimuth) - int(azimuth[-1] > 359.9)  # the reference repeats the first view at the end of its test orbit
    cameras = orbit(
        n,
        radians(float(recorded["elevation_deg"][0])),
        float(recorded["camera_distances"][0]),
        radians(cfg["eval_fovy_deg"]),
        cfg["eval_height"],
        cfg["eval_width"],
    )
    origins, directions = cameras.rays()
    rows, columns = recorded["rays_o"].shape[1:3]
    close(cameras.c2w, recorded["c2w"][:n])
    close(cameras.position, recorded["camera_positions"][:n])
    close(cameras.position, recorded["light_positions"][:n])  # where the renderer puts the light without a rig
    close(origins[:, :rows, :columns], recorded["rays_o"][:n])
    close(directions, recorded["rays_d"][:n])


def some_rig(seed: int, n_groups: int = 2, **options) -> Rig:
    shaken = {"camera_perturb": 0.1, "center_perturb": 0.2, "up_perturb": 0.02} | options
    config, generator = MultiviewCameraConfig(**shaken), seeding.generator(seed, 0, "cameras")
    return sample_multiview(config, generator, 0, n_groups=n_groups, height=12, width=20)


@FIXED
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4, 6]), st.integers(1, 3), st.booleans())
def test_groups_share_all_but_the_azimuth(seed, n_view, n_groups, magic):
    strategy = "magic3d" if magic else "dreamfusion"
    rig = some_rig(seed, n_groups, n_view=n_view, light_sample_strategy=strategy)
    cameras = rig.cameras
    assert len(cameras) == n_view * n_groups and rig.n_view == n_view
    assert_rigid(cameras.c2w)
    for shared in (rig.elevation, rig.distance, cameras.fov, rig.light.norm(dim=-1)):
        groups = shared.reshape(n_groups, n_view)
        torch.testing.assert_close(groups, groups[:, :1].expand_as(groups))
    steps = wrap_angle(rig.azimuth.reshape(n_groups, n_view).diff(dim=1) - 2 * pi / n_view)
    assert float(steps.abs().sum()) < 1e-4


@FIXED
@given(st.integers(0, 1000))
def test_four_positions_are_quarter_turns_apart(seed):
    cameras = some_rig(seed, n_groups=1, camera_perturb=0).cameras
    flat = torch.nn.functional.normalize(cameras.position[:, :2], dim=-1)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(flat @ quarter, flat.roll(-1, dims=0), atol=1e-5, rtol=0)


@FIXED
@given(st.integers(0, 1000), st.booleans())
def test_draws_stay_in_their_ranges(seed, relative):
    options = {"elevation_range": (-10, 60), "fov_range": (20, 40), "distance_range": (1, 2)}
    rig = some_rig(seed, 3, relative_distance=relative, light_distance_range=(0.5, 0.7), **options)
    assert -10.001 <= degrees(rig.elevation.min()) and degrees(rig.elevation.max()) <= 60.001
    assert 19.999 <= degrees(rig.cameras.fov.min()) and degrees(rig.cameras.fov.max()) <= 40.001
    size = rig.distance * torch.tan(rig.cameras.fov / 2) if relative else rig.distance
    assert 0.999 <= float(size.min()) and float(size.max()) <= 2.001
    light = rig.light.norm(dim=-1)
    assert 0.499 <= float(light.min()) and float(light.max()) <= 0.701
    azimuth = rig.azimuth.rad2deg()
    assert -180.001 <= float(azimuth.min()) and float(azimuth.max()) <= 180.001


def mean_sine(coin: float, reference: bool) -> float:
    options = MultiviewCameraConfig(n_view=1, elevation_range=(0, 90), elevation_reference=reference)
    draws = draw(options, 4000, seeding.generator(0, 0, "cameras"))
    draws["elevation_coin"] = torch.tensor(coin)
    return float(cameras_from_draws(options, draws, 4, 4).elevation.sin().mean())


def test_elevation_coin_is_uniform_in_angle_or_on_the_sphere():
    # Over a quarter circle the mean sine is 2 / pi for uniform angles and 1 / 2 for uniform points.
    assert mean_sine(0.2, reference=False) == pytest.approx(2 / pi, abs=0.01)
    assert mean_sine(0.8, reference=False) == pytest.approx(1 / 2, abs=0.01)


def test_the_exact_elevations_fill_the_range_and_the_reference_does_not():
    draws = draw(MultiviewCameraConfig(), 1, seeding.generator(0, 0, "cameras"))
    draws |= {"elevation_coin": torch.tensor(0.9), "elevation": torch.tensor([1.0])}
    for reference, top in ((False, 30.0), (True, 19.4712)):
        options = MultiviewCameraConfig(elevation_reference=reference)
        assert degrees(cameras_from_draws(options, draws, 4, 4).elevation[0]) == pytest.approx(top, abs=1e-3)


def test_light_of_magic3d_is_within_sixty_degrees_of_the_camera():
    rig = some_rig(5, 100, n_view=1, light_sample_strategy="magic3d")
    cameras = rig.cameras
    cosine = torch.nn.functional.cosine_similarity(rig.light, cameras.position)
    assert 0.5 - 1e-4 < float(cosine.min()) < 0.6
    above = (rig.light * cameras.c2w[:, :3, 1]).sum(dim=-1) > 0
    assert 0.3 < float(above.float().mean()) < 0.7


def test_one_group_unless_more_are_asked_for():
    rig = sample_multiview(MultiviewCameraConfig(n_view=3), torch.Generator().manual_seed(0), 0)
    assert len(rig.cameras) == 3 and len(rig.light) == 3


def test_single_views_have_independent_azimuths():
    azimuth = some_rig(1, 400, n_view=1).azimuth
    counts = torch.histc(azimuth, bins=4, min=-pi, max=pi)
    assert float(counts.min()) > 70


def test_a_seed_gives_the_same_cameras_and_another_seed_others():
    first, again, other = some_rig(7), some_rig(7), some_rig(8)
    assert torch.equal(first.cameras.c2w, again.cameras.c2w) and torch.equal(first.light, again.light)
    assert not torch.equal(first.cameras.c2w, other.cameras.c2w)


def test_ranges_widen_only_if_asked():
    draws = draw(MultiviewCameraConfig(), 2, seeding.generator(0, 0, "cameras"))
    assert float(cameras_from_draws(MultiviewCameraConfig(), draws, 4, 4).azimuth.abs().max()) > 1
    growing = MultiviewCameraConfig(progressive_until=10)
    generator = seeding.generator(0, 0, "cameras")
    assert float(sample_multiview(growing, generator, 0).azimuth.abs().max()) == 0
    full = sample_multiview(growing, seeding.generator(0, 0, "x"), 10)
    plain = sample_multiview(MultiviewCameraConfig(), seeding.generator(0, 0, "x"), 10)
    assert torch.equal(full.cameras.c2w, plain.cameras.c2w)


def test_turntable_closes_without_repeating():
    cameras = turntable(OrbitCameraConfig(n_view=12, azimuth=90, height=6, width=10), n=8)
    assert len(cameras) == 8 and (cameras.height, cameras.width) == (6, 10)
    azimuth = torch.atan2(cameras.position[:, 1], cameras.position[:, 0]).rad2deg() % 360
    assert azimuth.tolist() == pytest.approx([(90 + 45 * i) % 360 for i in range(8)], abs=1e-3)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"fov_range": (60, 15)}, r"\[15, 60\]\?"),
        ({"elevation_range": (0, 100)}, "between -90 and 90"),
        ({"zoom_range": (0, 1)}, "strictly between 0 and 1000"),
        ({"n_view": 0}, "greater than or equal to 1"),
        ({"fovy_range": (15, 60)}, "not permitted"),
    ],
)
def test_impossible_ranges_are_named(options, problem):
    with pytest.raises(ValidationError, match=problem):
        MultiviewCameraConfig(**options)


@pytest.mark.parametrize(("groups", "n_view"), [(6, 4), (1, 4), (3, 1), (2, 3)])
def test_rings_all_around_have_their_azimuths_at_equal_distances(groups: int, n_view: int) -> None:
    options = OrbitCameraConfig(n_view=4, distance=2.6, fov=40.0)
    rig = surround(options, groups, n_view, (-5.0, 30.0), 32)
    turn = (rig.azimuth.rad2deg() % 360).sort().values
    assert torch.allclose(turn, torch.arange(groups * n_view) * 360.0 / (groups * n_view), atol=1e-3)
    assert torch.allclose(rig.cameras.position.norm(dim=-1), torch.tensor(2.6), atol=1e-5)
    steep = rig.elevation.rad2deg()
    assert steep.min() >= -5 and steep.max() <= 30 and len(steep.unique()) == groups
    parts = rig.groups()
    assert len(parts) == groups and all(len(part.cameras) == part.n_view == n_view for part in parts)
    for part in parts:  # as the prior wants them: one elevation, equal turns
        assert len(part.elevation.unique()) == 1
        assert torch.allclose(part.azimuth.diff(), torch.tensor(2 * pi / n_view), atol=1e-5)
    assert torch.equal(torch.cat([part.cameras.c2w for part in parts]), rig.cameras.c2w)
