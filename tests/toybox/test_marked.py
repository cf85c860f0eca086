"""Marked toybox objects: each panel is visible from its side only, and sides are independent."""

import numpy as np
import pytest

from threedgen.geometry.poses import orbit_array
from threedgen.toybox.data.make_srn import FAMILIES, SIDES, make_marked_object
from threedgen.toybox.world.raycast import render

AZIMUTH = dict(zip(SIDES, np.deg2rad([0.0, 90.0, 180.0, 270.0]), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("elevation", [0.15, 0.5, 1.0])
def test_panel_is_visible_only_from_its_side(family: str, elevation: float) -> None:
    visible = {side: [] for side in SIDES}  # type: ignore[var-annotated]
    for index in range(6):
        asset = make_marked_object(family, np.random.default_rng(index), index)
        azimuth = np.array(list(AZIMUTH.values()))
        c2w = orbit_array(np.full(4, elevation), azimuth, np.full(4, 2.61))
        labels = render([asset], np.zeros(4, int), c2w, np.full(4, 0.7), 48, 1.0, 1, with_gbuffer=True).label
        for k, side in enumerate(SIDES):
            panel = asset.labels.index(f"{side} panel") + 1
            symbol = asset.labels.index(f"{side} symbol") + 1
            pixels = [int(np.isin(label, (panel, symbol)).sum()) for label in labels]
            visible[side].append((pixels[k], pixels[(k + 1) % 4], pixels[(k + 2) % 4], pixels[(k + 3) % 4]))
    for side, counts in visible.items():
        own, *others = np.array(counts).T
        assert own.mean() >= 40, (side, counts)
        assert (own >= 20).all() or elevation > 0.15, (side, counts)  # a seat hides panels from above
        assert np.mean(others) < 0.03 * own.mean(), (side, counts)


def test_panel_colours_and_shapes_are_independent() -> None:
    cars = [make_marked_object("cars", np.random.default_rng([7, index])) for index in range(60)]

    def colour(car, label: str) -> np.ndarray:
        return next(solid.colour for solid in car.primitives if solid.label == label)

    left, right = (np.array([colour(car, f"{side} panel") for car in cars]) for side in ("left", "right"))
    correlation = [np.corrcoef(left[:, k], right[:, k])[0, 1] for k in range(3)]
    assert np.abs(correlation).max() < 0.4 and left.std(0).min() > 0.2
    shapes = {tuple(s.kind for s in car.primitives if s.label == "left symbol") for car in cars}
    pieces = [any(s.label == "back piece" for s in car.primitives) for car in cars]
    assert len(shapes) >= 4 and 0.4 < np.mean(pieces) < 0.95


def test_equal_seeds_give_equal_objects_inside_the_ball() -> None:
    one, two = (make_marked_object("chairs", np.random.default_rng(3)) for _ in range(2))
    assert len(one.primitives) == len(two.primitives)
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(one.primitives, two.primitives, strict=True))
    assert np.abs(one.mesh()[0]).max() <= 0.86
