from math import degrees, pi, radians
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.errors import refused
from tests.support.parity_files import parity_files
from threedgen.config.sections import MultiviewCameraConfig
from threedgen.geometry.rigs import orbit, rig_from_random_inputs, ring_rig, sample_multiview, sample_random_inputs
from threedgen.run import seeding

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
TOLERANCE = 1e-5
MULTIVIEW, EVALUATION = parity_files("camera_mv_"), parity_files("camera_eval_")


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    arrays = dict(np.load(path).items())
    options = yaml.safe_load(str(arrays.pop("cfg_json")))
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, options


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= TOLERANCE * max(float(expected.abs().max()), 1.0)


def reference_options(cfg: dict) -> MultiviewCameraConfig:
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


def recorded_random_inputs(recorded: dict[str, Tensor], strategy: str) -> dict[str, Tensor]:
    """Name the recorded random numbers, which are in threestudio's sampling order."""
    order = ["elevation_coin", "elevation", "azimuth", "fov", "distance", "zoom"]
    order += ["camera_perturb", "center_perturb", "up_perturb", "light_distance"]
    order += ["light_direction"] if strategy == "dreamfusion" else ["light_azimuth", "light_elevation"]
    numbers = [recorded[name] for name in sorted(recorded) if name.startswith("draw")]
    return dict(zip(order, numbers, strict=True))


@pytest.mark.parametrize("path", MULTIVIEW, ids=lambda path: path.stem)
def test_parity_multiview_batch(path):
    recorded, cfg = load(path)
    options = reference_options(cfg)
    inputs = recorded_random_inputs(recorded, options.light_sample_strategy)
    # threestudio widens its ranges over the first steps even when progressive_until is 0
    ramp = min(1.0, int(recorded["step"]) / (cfg.get("progressive_until", 0) + 1))
    height, width = int(recorded["out_height"]), int(recorded["out_width"])
    rig = rig_from_random_inputs(options, inputs, height, width, ramp)
    cameras = rig.cameras
    origins, directions = cameras.rays()
    outputs = {"c2w": cameras.c2w, "camera_positions": cameras.position, "light_positions": rig.light}
    outputs |= {"elevation": rig.elevation.rad2deg(), "azimuth": rig.azimuth.rad2deg()}
    outputs |= {"camera_distances": rig.distance, "fovy": cameras.fov.rad2deg()}
    for name, values in (outputs | {"rays_o": origins, "rays_d": directions}).items():
        assert_close(values, recorded[f"out_{name}"])


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.stem)
def test_parity_evaluation_orbit(path):
    recorded, cfg = load(path)
    azimuth = recorded["azimuth_deg"]
    n = len(azimuth) - int(azimuth[-1] > 359.9)  # threestudio's test orbit repeats the first view
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
    assert_close(cameras.c2w, recorded["c2w"][:n])
    assert_close(cameras.position, recorded["camera_positions"][:n])
    assert_close(cameras.position, recorded["light_positions"][:n])  # the renderer's default light position
    assert_close(origins[:, :rows, :columns], recorded["rays_o"][:n])
    assert_close(directions, recorded["rays_d"][:n])


@FIXED
@given(st.integers(0, 1000), st.booleans(), st.sampled_from(["dreamfusion", "magic3d"]))
def test_sample_multiview_stays_in_ranges(seed, relative, light):
    options = {"elevation_range": (-10, 60), "fov_range": (20, 40), "distance_range": (1, 2)}
    options |= {"camera_perturb": 0.1, "center_perturb": 0.2, "up_perturb": 0.02}
    config = MultiviewCameraConfig(relative_distance=relative, light_sample_strategy=light, **options)
    rig = sample_multiview(config, seeding.generator(seed, 0, "cameras"), 0, n_groups=3, height=12, width=20)
    distance = rig.distance * torch.tan(rig.cameras.fov / 2) if relative else rig.distance
    for values, low, high in (
        (rig.elevation.rad2deg(), -10, 60),
        (rig.azimuth.rad2deg(), -180, 180),
        (rig.cameras.fov.rad2deg(), 20, 40),
        (distance, 1, 2),
        (rig.light.norm(dim=-1), 0.8, 1.5),
    ):
        assert low - 0.001 <= float(values.min()) and float(values.max()) <= high + 0.001


def test_elevation_fills_the_range_unless_elevation_reference():
    inputs = sample_random_inputs(MultiviewCameraConfig(), 1, seeding.generator(0, 0, "cameras"))
    inputs |= {"elevation_coin": torch.tensor(0.9), "elevation": torch.tensor([1.0])}
    for reference, top in ((False, 30.0), (True, 19.4712)):
        options = MultiviewCameraConfig(elevation_reference=reference)
        assert degrees(rig_from_random_inputs(options, inputs, 4, 4).elevation[0]) == pytest.approx(top, abs=1e-3)


def test_magic3d_light_is_within_60_degrees_of_the_camera():
    options = MultiviewCameraConfig(n_view=1, light_sample_strategy="magic3d")
    rig = sample_multiview(options, seeding.generator(5, 0, "cameras"), 0, n_groups=100)
    cosine = torch.nn.functional.cosine_similarity(rig.light, rig.cameras.position)
    assert 0.5 - 1e-4 < float(cosine.min()) < 0.6
    above = (rig.light * rig.cameras.c2w[:, :3, 1]).sum(dim=-1) > 0
    assert 0.3 < float(above.float().mean()) < 0.7


def test_sample_multiview_widens_ranges_with_progressive_until():
    inputs = sample_random_inputs(MultiviewCameraConfig(), 2, seeding.generator(0, 0, "cameras"))
    assert float(rig_from_random_inputs(MultiviewCameraConfig(), inputs, 4, 4).azimuth.abs().max()) > 1
    growing = MultiviewCameraConfig(progressive_until=10)
    generator = seeding.generator(0, 0, "cameras")
    assert float(sample_multiview(growing, generator, 0).azimuth.abs().max()) == 0
    full = sample_multiview(growing, seeding.generator(0, 0, "x"), 10)
    plain = sample_multiview(MultiviewCameraConfig(), seeding.generator(0, 0, "x"), 10)
    assert torch.equal(full.cameras.c2w, plain.cameras.c2w) and len(full.cameras) == growing.n_view


def test_zoom_that_opens_the_field_of_view_to_180_degrees_is_refused() -> None:
    with refused(None, "fov_range", "zoom_range", 180, kind=ValueError):
        MultiviewCameraConfig(zoom_range=(1, 3))
    assert MultiviewCameraConfig(zoom_range=(1, 2.9)).zoom_range == (1, 2.9)


@pytest.mark.parametrize(("groups", "n_view"), [(6, 4), (3, 1)])
def test_ring_rig_has_equally_spaced_azimuths(groups: int, n_view: int) -> None:
    rig = ring_rig(groups, n_view, (-5.0, 30.0), 2.6, 40.0, 32)
    azimuth = (rig.azimuth.rad2deg() % 360).sort().values
    assert torch.allclose(azimuth, torch.arange(groups * n_view) * 360.0 / (groups * n_view), atol=1e-3)
    assert torch.allclose(rig.cameras.position.norm(dim=-1), torch.tensor(2.6), atol=1e-5)
    elevation = rig.elevation.rad2deg()
    assert elevation.min() >= -5 and elevation.max() <= 30 and len(elevation.unique()) == groups
    assert torch.allclose(elevation[:n_view], torch.tensor(12.5), atol=1e-3)  # the middle
    assert [len(part.cameras) for part in rig.groups()] == [n_view] * groups
    for part in rig.groups():  # required by the prior: one elevation, equal azimuth steps
        assert len(part.elevation.unique()) == 1
        assert torch.allclose(part.azimuth.diff(), torch.tensor(2 * pi / n_view), atol=1e-5)
