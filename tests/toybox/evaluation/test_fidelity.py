"""Distances of blurred images, and roughness of surfaces."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.support.ball_run import ball_run, register
from threedgen.export.run_field import load_run_field
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.evaluation import report
from threedgen.toybox.evaluation.probe import Probe
from threedgen.toybox.evaluation.report import Surface, distances, fidelity_table, roughness, surface, surface_figures
from threedgen.toybox.world.toybox import Toybox, render_orbit

AROUND = np.deg2rad([0.0, 90.0, 180.0, 270.0])


def sphere(size: int, bumps: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Normals (1, size, size, 3) and mask of a ball that fills the image, with normal noise ``bumps``."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    inside = x**2 + y**2 < 0.9
    normal = np.stack([x, -y, np.sqrt(np.clip(1 - x**2 - y**2, 0, None))], -1)
    normal += bumps * np.random.default_rng(0).normal(size=normal.shape)
    return (normal / np.linalg.norm(normal, axis=-1, keepdims=True))[None], inside[None]


def test_roughness_of_planes_and_spheres() -> None:
    flat = np.broadcast_to([0.0, 0.6, 0.8], (2, 8, 8, 3))
    assert roughness(flat, np.ones((2, 8, 8), bool)) == pytest.approx(0, abs=1e-3)
    smooth, finer = roughness(*sphere(64)), roughness(*sphere(128))
    assert smooth is not None and finer == pytest.approx(smooth / 2, rel=0.05)
    rough = roughness(*sphere(64, 0.2))
    assert rough is not None and rough > 4 * smooth
    assert roughness(flat, np.zeros((2, 8, 8), bool)) is None


def test_roughness_uses_foreground_pairs_only() -> None:
    normal = np.zeros((1, 4, 4, 3))
    normal[..., :2, 2] = normal[..., 2:, 0] = 1  # a right angle between columns 1 and 2
    left = np.zeros((1, 4, 4), bool)
    left[..., :2] = True
    assert roughness(normal, left) == 0
    assert roughness(normal, np.ones((1, 4, 4), bool)) == pytest.approx(90 * 4 / 24)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe.load("embedded")


def test_blur_increases_the_distances(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "GROUPS", 2)

    def draw(seed: int) -> list[np.ndarray]:
        box = Toybox(seed)
        return [render_orbit(box.asset(k), AROUND, 0.26, 64).rgb for k in range(24)]

    truth, other = draw(1), draw(2)
    blurred = [ndimage.gaussian_filter(views, (0, 3, 3, 0)) for views in other]
    figures = distances(probe, blurred, truth, other)
    assert figures["fid"] > 1.1 * figures["floor_fid"] and figures["kid"] > figures["floor_kid"] + 0.02
    low, high = figures["fid_interval"]
    assert low < figures["fid"] < high and len(figures["floor_kid_interval"]) == 2
    as_bytes = [(views * 255).round().astype(np.uint8) for views in other]
    assert report.features(probe, as_bytes) == pytest.approx(report.features(probe, other), abs=0.3)


def test_surface_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ball of radius r at distance d: between pixels of angle a its normals turn by about a d / r, and faster
    towards the outline; its field is dense."""
    register(monkeypatch)
    view = load_run_field(ball_run(tmp_path / "run")).view
    found = surface(view, orbit_array(0.2, AROUND, 2.6).astype(np.float32), np.deg2rad(40), 64, 64)
    assert found is not None and not found[1]
    middle = np.deg2rad(40) / 64 * 2.6
    assert found[0] is not None and np.rad2deg(middle) < found[0] < 20


def test_surface_figures_and_table() -> None:
    figures = surface_figures([Surface(6.0, True), Surface(8.0, False), None], [4.0, None, 5.0])
    intervals = {"roughness_interval": (6.0, 8.0), "floor_roughness_interval": (4.0, 5.0)}
    assert figures == {"roughness": 7.0, "floor_roughness": 4.5, "translucent": 1, "without_surface": 1} | intervals
    text = fidelity_table(figures | {"fid": 12.345, "fid_interval": [11.0, 13.5], "floor_fid": 3.0})
    assert "| FID to the truth | 12.3 (11 - 13.5) | 3 |" in text and "| translucent objects | 1 | 0 |" in text
    assert "KID" not in text and torch.is_grad_enabled()
