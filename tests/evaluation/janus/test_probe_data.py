"""Rough and two-faced objects, from which the classifier of the Janus meter learns, and their truth."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import janus_stub
from threedgen.data.coloured_mesh import ColouredMesh, Part, toybox_mesh
from threedgen.data.toybox.grammar import Spec
from threedgen.data.toybox.world import build
from threedgen.evaluation.janus.meter import Meter
from threedgen.evaluation.janus.meter_errors import measure
from threedgen.evaluation.janus.options import MeterConfig, TruthConfig
from threedgen.evaluation.toybox.corruption import EDGE, SHAKE, Noise, corrupt, nearer_front, rough, subdivided
from threedgen.evaluation.toybox.labels import OPEN, Labels, ProbeToybox, labelled


def dog() -> ColouredMesh:
    return toybox_mesh(build(Spec("dog", "blue"), np.random.default_rng(0)))


def places(mesh: ColouredMesh) -> np.ndarray:
    return mesh.corners.reshape(-1, 3)


def test_halving_keeps_the_surface_and_what_it_carries() -> None:
    corners = np.array([[[0, 0, 0], [0.9, 0, 0], [0, 0.5, 0.1]], [[0, 0, 1], [0.01, 0, 1], [0, 0.01, 1.0]]])
    part = Part(corners, corners * 0.5 + 0.1)
    fine = subdivided(part)
    edges = np.linalg.norm(fine.corners - np.roll(fine.corners, -1, axis=1), axis=2)

    def area(c: np.ndarray) -> float:
        return float(np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() / 2)

    assert edges.max() <= EDGE and area(fine.corners) == pytest.approx(area(corners))
    assert np.allclose(fine.values, fine.corners * 0.5 + 0.1) and any((fine.corners == corners[1]).all((1, 2)))


def test_noise_has_the_strength_it_says_and_neighbours_share_it() -> None:
    points = np.random.default_rng(1).uniform(-1, 1, (4000, 3))
    values = np.concatenate([Noise(np.random.default_rng(k), 0.2)(points) for k in range(20)])
    assert values.std() == pytest.approx(1, abs=0.1) and values.mean() == pytest.approx(0, abs=0.05)
    noise = Noise(np.random.default_rng(0), 0.2)
    near, far = (noise(points + [d, 0, 0]) - noise(points) for d in (0.005, 1.0))
    assert near.std() < 0.3 < 1 < far.std()


def test_a_rough_thing_is_moved_by_what_was_asked_and_stays_closed() -> None:
    mesh = dog()
    assert rough(mesh, np.random.default_rng(0), 0) is mesh
    smooth = ColouredMesh(tuple(subdivided(part) for part in mesh.parts))
    for strength in (0.5, 2):
        shaken = [places(rough(mesh, np.random.default_rng(k), strength)) - places(smooth) for k in range(12)]
        assert np.sqrt(np.mean(np.square(shaken))) == pytest.approx(SHAKE * strength, rel=0.2)
    once, again = (rough(mesh, np.random.default_rng(5)) for _ in range(2))
    assert (places(once) == places(again)).all()
    _, which = np.unique(places(smooth).round(9), axis=0, return_inverse=True)
    first = np.unique(which, return_index=True)[1]
    assert np.allclose(places(once), places(once)[first][which.ravel()], atol=1e-6)
    assert all((part.values >= 0).all() and (part.values <= 1).all() for part in once.parts)


def test_errors_can_be_measured_on_rough_objects() -> None:
    janus_stub.register()
    meter = Meter(MeterConfig(classifier={"name": "stub"}, size=32))
    smooth, shaken = (measure(meter, TruthConfig(objects=2, rough=strength), 0).known for strength in (0, 1))
    for one, other in zip(smooth, shaken, strict=True):
        assert one.prompt == other.prompt
        assert (one.good.views != other.good.views).any() and (one.two_fronted.views != other.two_fronted.views).any()


def test_the_texture_of_a_rough_thing_stays() -> None:
    corners, uv = np.eye(3)[None] * 0.2, np.array([[[0, 0], [1, 0], [0, 1.0]]])
    made = rough(ColouredMesh((Part(corners, uv, np.zeros((2, 2, 3))),)), np.random.default_rng(0))
    assert made.parts[0].values.min() == 0 and made.parts[0].values.max() == 1 and made.parts[0].texture is not None


def test_sides_of_two_fronts_count_from_the_nearer_one() -> None:
    degrees = np.array([0.0, 30, 59, 61, 90, 121, 150, 180, 210, 300.5, 330])
    azimuth, clear = nearer_front(np.deg2rad(degrees))
    assert np.rad2deg(azimuth) == pytest.approx([0, 30, 59, 61, 90, 301, 330, 0, 30, 300.5, 330], abs=1e-3)
    assert clear.tolist() == [True, True, True, False, False, True, True, True, True, True, True]


def test_spoiling_changes_pictures_and_only_what_is_no_longer_true() -> None:
    box, labels, indices = ProbeToybox(3), Labels.of_toybox(), range(12)

    def lesson(share: float):
        assets, rgb, truth = labelled(box, indices, 32, 2, labels)
        before = rgb.copy()
        corrupt(box, indices, assets, rgb, truth, share, np.random.default_rng(4))
        return assets, before, rgb, truth

    _, before, rgb, plain = lesson(0)
    assert (before == rgb).all()
    assets, before, rgb, truth = lesson(1)
    assert (np.abs(before - rgb).max((1, 2, 3)) > 0.02).all() and 0 <= rgb.min() and rgb.max() <= 1
    assert (truth.noun == plain.noun).all() and (truth.colour == plain.colour).all()
    two = (truth.seen == OPEN).all(1)
    assert 0 < two.sum() < len(two) and all(asset.front for k, asset in enumerate(assets) if two[2 * k])
    assert (truth.azimuth[~two] == plain.azimuth[~two]).all() and (truth.front[~two] == plain.front[~two]).all()
    assert (truth.azimuth[two & truth.front].cos() >= 0.49).all()
