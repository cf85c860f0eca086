"""Cameras: recorded reference batches, and the properties that make a pose a pose."""

from __future__ import annotations

from math import degrees, pi, radians, tan
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.support.parity_files import parity_files
from threedgen.config.sections import MultiviewCameraConfig, OrbitCameraConfig
from threedgen.geometry.cameras import (
    Cameras,
    cameras_from_draws,
    draw,
    look_at,
    orbit,
    orbit_c2w,
    projection_matrix,
    sample_multiview,
    turntable,
    world_to_camera,
    wrap_angle,
)
from threedgen.run import seeding

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
TOLERANCE = 1e-5
MULTIVIEW, EVALUATION = parity_files("camera_mv_"), parity_files("camera_eval_")

ELEVATIONS = st.floats(-pi / 2, pi / 2)
AZIMUTHS = st.floats(-10, 10)
DISTANCES = st.floats(0.2, 20)


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
    cameras = cameras_from_draws(options, draws, height, width, ramp)
    origins, directions = cameras.rays()
    close(cameras.c2w, recorded["out_c2w"])
    close(cameras.position, recorded["out_camera_positions"])
    close(cameras.light, recorded["out_light_positions"])
    close(cameras.elevation.rad2deg(), recorded["out_elevation"])
    close(cameras.azimuth.rad2deg(), recorded["out_azimuth"])
    close(cameras.distance, recorded["out_camera_distances"])
    close(cameras.fov.rad2deg(), recorded["out_fovy"])
    close(origins, recorded["out_rays_o"])
    close(directions, recorded["out_rays_d"])
    close(cameras.mvp(), recorded["out_mvp_mtx"])


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.stem)
def test_parity_evaluation_orbit(path):
    recorded, cfg = load(path)
    azimuth = recorded["azimuth_deg"]
    cameras = orbit(
        len(azimuth),
        radians(float(recorded["elevation_deg"][0])),
        float(recorded["camera_distances"][0]),
        radians(cfg["eval_fovy_deg"]),
        cfg["eval_height"],
        cfg["eval_width"],
        closed=float(azimuth[-1]) > 359.9,
    )
    origins, directions = cameras.rays()
    rows, columns = recorded["rays_o"].shape[1:3]
    close(cameras.azimuth.rad2deg(), azimuth)
    close(cameras.c2w, recorded["c2w"])
    close(cameras.position, recorded["camera_positions"])
    close(cameras.light, recorded["light_positions"])
    close(origins[:, :rows, :columns], recorded["rays_o"])
    close(directions, recorded["rays_d"])
    close(cameras.mvp(), recorded["mvp_mtx"])


def one(value: float) -> Tensor:
    return torch.tensor([value])


def assert_rigid(c2w: Tensor) -> None:
    rotation = c2w[:, :3, :3].double()
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(c2w)).double(), atol=2e-6, rtol=0)
    assert c2w[:, 3].tolist() == [[0, 0, 0, 1]] * len(c2w)


@FIXED
@given(ELEVATIONS, AZIMUTHS, DISTANCES)
def test_orbit_poses_are_rigid_and_look_at_the_origin(elevation, azimuth, distance):
    c2w = orbit_c2w(one(elevation), one(azimuth), one(distance))
    assert_rigid(c2w)
    assert float(c2w[0, :3, 3].norm()) == pytest.approx(distance, rel=1e-5)
    # Looking along -z from there by that distance is the origin; up in the picture is not down in the world.
    seen = c2w[0, :3, 3] - distance * c2w[0, :3, 2]
    torch.testing.assert_close(seen, torch.zeros(3), atol=1e-5 * distance, rtol=0)
    assert float(c2w[0, 2, 1]) >= -1e-6 and abs(float(c2w[0, 2, 0])) < 1e-6


@FIXED
@given(st.floats(-1.5, 1.5), AZIMUTHS, DISTANCES)
def test_look_at_agrees_with_orbits(elevation, azimuth, distance):
    c2w = orbit_c2w(one(elevation), one(azimuth), one(distance))
    got = look_at(c2w[:, :3, 3], torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(got, c2w, atol=2e-5 * max(1, distance), rtol=0)


@FIXED
@given(st.tuples(*[st.floats(-1, 1)] * 3), st.floats(0.01, 5))
def test_look_at_along_up_is_still_rigid(direction, length):
    forward = torch.tensor([direction])
    if float(forward.norm()) < 0.1:
        return
    c2w = look_at(torch.zeros(1, 3), forward, length * forward)
    assert_rigid(c2w)
    cosine = -(c2w[0, :3, 2] * forward[0]).sum() / forward.norm()
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_three_cameras_are_three_cameras():
    """A cross product without an axis would pick the batch when it happens to be three."""
    position = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    up = torch.tensor([0.0, 0.0, 1.0]).expand(3, 3)
    together = look_at(position, torch.zeros(3, 3), up)
    alone = torch.cat([look_at(position[i : i + 1], torch.zeros(1, 3), up[:1]) for i in range(3)])
    assert torch.equal(together, alone)


@FIXED
@given(st.floats(-3, 3), st.integers(-3, 3), ELEVATIONS)
def test_azimuth_wraps(azimuth, turns, elevation):
    turned = one(azimuth + turns * 2 * pi)
    torch.testing.assert_close(wrap_angle(turned), one(azimuth), atol=1e-5, rtol=0)
    here, there = (orbit_c2w(one(elevation), angle, one(1.0)) for angle in (one(azimuth), turned))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


def test_front_is_plus_x_and_left_comes_next():
    cameras = orbit(4, 0.0, 2.0, 0.7, 8, 8)
    want = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    torch.testing.assert_close(cameras.position, want, atol=1e-6, rtol=0)
    # Seen from the front, +y of the world is to the right of the picture and +z is up.
    pixels, _ = cameras.project(torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]))
    assert pixels[0, 0, 0] > 4 and pixels[0, 0, 1] == pytest.approx(4)
    assert pixels[0, 1, 1] < 4 and pixels[0, 1, 0] == pytest.approx(4)


def some_cameras(seed: int, n_groups: int = 2, **options) -> Cameras:
    shaken = {"camera_perturb": 0.1, "center_perturb": 0.2, "up_perturb": 0.02} | options
    config, generator = MultiviewCameraConfig(**shaken), seeding.generator(seed, 0, "cameras")
    return sample_multiview(config, generator, 0, n_groups=n_groups, height=12, width=20)


@FIXED
@given(st.integers(0, 500))
def test_projection_round_trip(seed):
    cameras = some_cameras(seed)
    points = torch.rand(len(cameras), 7, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    pixels, depth = cameras.project(points)
    torch.testing.assert_close(cameras.unproject(pixels, depth), points, atol=2e-5, rtol=0)
    along = (points - cameras.position[:, None]).norm(dim=-1)
    torch.testing.assert_close(cameras.unproject(pixels, along, along_ray=True), points, atol=2e-5, rtol=0)


@FIXED
@given(st.integers(0, 500), st.floats(0.5, 5))
def test_a_point_on_a_ray_projects_to_its_pixel_centre(seed, distance):
    cameras = some_cameras(seed, n_groups=1)
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (4, 12, 20, 3)
    pixels, _ = cameras.project((origins + distance * directions).flatten(1, 2))
    row, column = 3, 17
    want = torch.tensor([column + 0.5, row + 0.5]).expand(4, 2)
    torch.testing.assert_close(pixels[:, row * 20 + column], want, atol=2e-3, rtol=0)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(4, 12, 20))


@FIXED
@given(st.integers(0, 500))
def test_mvp_agrees_with_project(seed):
    cameras = some_cameras(seed, n_groups=1)
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    clip = torch.cat([points, torch.ones(5, 1)], dim=1) @ cameras.mvp(near=0.01, far=50.0).mT
    pixels, depth = cameras.project(points)
    screen = (clip[..., :2] / clip[..., 3:] + 1) / 2 * torch.tensor([20.0, 12.0])
    torch.testing.assert_close(screen, pixels, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(clip[..., 3], depth, atol=1e-4, rtol=1e-5)


def test_near_and_far_planes_are_the_ends_of_clip_space():
    matrix = projection_matrix(one(0.8), 1.5, near=0.5, far=20.0)[0]
    for depth, end in ((0.5, -1.0), (20.0, 1.0)):
        clip = matrix @ torch.tensor([0.0, 0.0, -depth, 1.0])
        assert float(clip[2] / clip[3]) == pytest.approx(end, abs=1e-5)


def test_field_of_view_is_vertical():
    cameras = orbit(1, 0.0, 3.0, radians(40), 10, 30)
    edge = 3 * tan(radians(20))
    pixels, _ = cameras.project(torch.tensor([[0.0, 0.0, edge], [0.0, 0.0, -edge]]))
    assert pixels[0, :, 1].tolist() == pytest.approx([0, 10], abs=1e-4)


def test_inverse_of_a_pose():
    c2w = some_cameras(3).c2w
    torch.testing.assert_close(world_to_camera(c2w) @ c2w, torch.eye(4).expand(8, 4, 4), atol=1e-5, rtol=0)


@FIXED
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4, 6]), st.integers(1, 3), st.booleans())
def test_groups_share_all_but_the_azimuth(seed, n_view, n_groups, magic):
    strategy = "magic3d" if magic else "dreamfusion"
    cameras = some_cameras(seed, n_groups, n_view=n_view, light_sample_strategy=strategy)
    assert len(cameras) == n_view * n_groups and cameras.n_view == n_view
    assert_rigid(cameras.c2w)
    for shared in (cameras.elevation, cameras.distance, cameras.fov, cameras.light.norm(dim=-1)):
        groups = shared.reshape(n_groups, n_view)
        torch.testing.assert_close(groups, groups[:, :1].expand_as(groups))
    steps = wrap_angle(cameras.azimuth.reshape(n_groups, n_view).diff(dim=1) - 2 * pi / n_view)
    assert float(steps.abs().sum()) < 1e-4


@FIXED
@given(st.integers(0, 1000))
def test_four_positions_are_quarter_turns_apart(seed):
    cameras = some_cameras(seed, n_groups=1, camera_perturb=0)
    flat = torch.nn.functional.normalize(cameras.position[:, :2], dim=-1)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(flat @ quarter, flat.roll(-1, dims=0), atol=1e-5, rtol=0)


@FIXED
@given(st.integers(0, 1000), st.booleans())
def test_draws_stay_in_their_ranges(seed, relative):
    options = {"elevation_range": (-10, 60), "fov_range": (20, 40), "distance_range": (1, 2)}
    cameras = some_cameras(seed, 3, relative_distance=relative, light_distance_range=(0.5, 0.7), **options)
    assert -10.001 <= degrees(cameras.elevation.min()) and degrees(cameras.elevation.max()) <= 60.001
    assert 19.999 <= degrees(cameras.fov.min()) and degrees(cameras.fov.max()) <= 40.001
    size = cameras.distance * torch.tan(cameras.fov / 2) if relative else cameras.distance
    assert 0.999 <= float(size.min()) and float(size.max()) <= 2.001
    light = cameras.light.norm(dim=-1)
    assert 0.499 <= float(light.min()) and float(light.max()) <= 0.701
    azimuth = cameras.azimuth.rad2deg()
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
    draws |= {"elevation_coin": torch.tensor(0.9), "elevation": one(1.0)}
    for reference, top in ((False, 30.0), (True, 19.4712)):
        options = MultiviewCameraConfig(elevation_reference=reference)
        assert degrees(cameras_from_draws(options, draws, 4, 4).elevation[0]) == pytest.approx(top, abs=1e-3)


def test_light_of_magic3d_is_within_sixty_degrees_of_the_camera():
    cameras = some_cameras(5, 100, n_view=1, light_sample_strategy="magic3d")
    cosine = torch.nn.functional.cosine_similarity(cameras.light, cameras.position)
    assert 0.5 - 1e-4 < float(cosine.min()) < 0.6
    above = (cameras.light * cameras.c2w[:, :3, 1]).sum(dim=-1) > 0
    assert 0.3 < float(above.float().mean()) < 0.7


def test_single_views_have_independent_azimuths():
    azimuth = some_cameras(1, 400, n_view=1).azimuth
    counts = torch.histc(azimuth, bins=4, min=-pi, max=pi)
    assert float(counts.min()) > 70


def test_a_seed_gives_the_same_cameras_and_another_seed_others():
    first, again, other = some_cameras(7), some_cameras(7), some_cameras(8)
    assert torch.equal(first.c2w, again.c2w) and torch.equal(first.light, again.light)
    assert not torch.equal(first.c2w, other.c2w)


def test_ranges_widen_only_if_asked():
    draws = draw(MultiviewCameraConfig(), 2, seeding.generator(0, 0, "cameras"))
    assert float(cameras_from_draws(MultiviewCameraConfig(), draws, 4, 4).azimuth.abs().max()) > 1
    growing = MultiviewCameraConfig(progressive_until=10)
    generator = seeding.generator(0, 0, "cameras")
    assert float(sample_multiview(growing, generator, 0).azimuth.abs().max()) == 0
    full = sample_multiview(growing, seeding.generator(0, 0, "x"), 10)
    plain = sample_multiview(MultiviewCameraConfig(), seeding.generator(0, 0, "x"), 10)
    assert torch.equal(full.c2w, plain.c2w)


def test_turntable_closes_without_repeating_and_keeps_the_light_at_the_camera():
    cameras = turntable(OrbitCameraConfig(n_view=12, azimuth=90, height=6, width=10), n=8)
    assert len(cameras) == 8 and (cameras.height, cameras.width) == (6, 10)
    assert cameras.azimuth.rad2deg().tolist() == pytest.approx([90 + 45 * i for i in range(8)], abs=1e-3)
    assert torch.equal(cameras.light, cameras.position)
    closed = orbit(5, 0.1, 2.0, 0.7, 4, 4, closed=True)
    torch.testing.assert_close(closed.c2w[0], closed.c2w[-1], atol=1e-6, rtol=0)


def test_size_selection_and_groups():
    cameras = some_cameras(0, 2).with_size(5, 9)
    assert cameras.rays()[0].shape == (8, 5, 9, 3)
    part = cameras.select(slice(4, 7))
    assert len(part) == 3 and part.n_view == 1 and torch.equal(part.c2w, cameras.c2w[4:7])
    assert cameras.select([0, 1, 2, 3], n_view=4).n_view == 4
    assert cameras.to("cpu").fov.device.type == "cpu"
    with pytest.raises(ValueError, match="3 cameras are not whole groups of 4"):
        cameras.select(slice(0, 3), n_view=4)


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
