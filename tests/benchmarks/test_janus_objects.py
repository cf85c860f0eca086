"""Objects of the benchmark `janus_objects`, without the meter."""

from collections import Counter

import numpy as np

from benchmarks.janus_objects import objects
from threedgen.data.coloured_mesh import fit_to_ball
from threedgen.geometry.poses import orbit_array


def test_objects_have_their_number_of_fronts() -> None:
    angles = np.array([0, np.pi])
    c2w = orbit_array(np.full(2, 0.26), angles, np.full(2, 2.6))
    counts: Counter[tuple[str, int]] = Counter()
    for kind, name, fronts, mesh in objects():
        counts[kind, fronts] += 1
        assert np.linalg.norm(mesh.corners, axis=-1).max() < 1, name
        front, back = fit_to_ball(mesh).render(c2w, np.deg2rad(40), 32)
        changed = float((np.abs(front - back).max(-1) > 0.05).mean())  # share of pixels
        if fronts == 1:
            assert changed > 0.04, (kind, name)
        if fronts == 2:
            assert changed < 0.005, (kind, name)
    assert counts == {(kind, fronts): 10 for kind in ("other", "toybox") for fronts in (0, 1, 2)}
