import numpy as np
import pytest

from threedgen.data.coloured_mesh import ColouredMesh, Part
from threedgen.evaluation.corruption import MAX_EDGE, POSITION_NOISE, SmoothNoise, rough, subdivided, two_fronted
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.evaluation.labels import UNKNOWN_LABEL, Labels, ProbeToybox, corrupt, labelled, nearer_front
from threedgen.toybox.world.grammar import Spec
from threedgen.toybox.world.toybox import build, toybox_mesh


def dog() -> ColouredMesh:
    return toybox_mesh(build(Spec("dog", "blue"), np.random.default_rng(0)))


def render_sides(mesh: ColouredMesh, degrees: list[float]) -> np.ndarray:
    a = np.deg2rad(np.array(degrees, float))
    c2w = orbit_array(np.full_like(a, np.deg2rad(15)), a, np.full_like(a, 2.6))
    return mesh.render(c2w, np.deg2rad(40), 32, light=False)


def positions(mesh: ColouredMesh) -> np.ndarray:
    return mesh.corners.reshape(-1, 3)


def test_subdivision_keeps_surface_and_values() -> None:
    corners = np.array([[[0, 0, 0], [0.9, 0, 0], [0, 0.5, 0.1]], [[0, 0, 1], [0.01, 0, 1], [0, 0.01, 1.0]]])
    part = Part(corners, corners * 0.5 + 0.1)
    fine = subdivided(part)
    edges = np.linalg.norm(fine.corners - np.roll(fine.corners, -1, axis=1), axis=2)

    def area(c: np.ndarray) -> float:
        return float(np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() / 2)

    assert edges.max() <= MAX_EDGE and area(fine.corners) == pytest.approx(area(corners))
    assert np.allclose(fine.values, fine.corners * 0.5 + 0.1) and any((fine.corners == corners[1]).all((1, 2)))


def test_noise_has_unit_variance_and_is_smooth() -> None:
    points = np.random.default_rng(1).uniform(-1, 1, (4000, 3))
    values = np.concatenate([SmoothNoise(np.random.default_rng(k), 0.2)(points) for k in range(20)])
    assert values.std() == pytest.approx(1, abs=0.1) and values.mean() == pytest.approx(0, abs=0.05)
    noise = SmoothNoise(np.random.default_rng(0), 0.2)
    near, far = (noise(points + [d, 0, 0]) - noise(points) for d in (0.005, 1.0))
    assert near.std() < 0.3 < 1 < far.std()


def test_rough_mesh_has_the_noise_of_its_strength_and_stays_closed() -> None:
    mesh = dog()
    assert rough(mesh, np.random.default_rng(0), 0) is mesh
    smooth = ColouredMesh(tuple(subdivided(part) for part in mesh.parts))
    for strength in (0.5, 2):
        shifts = [positions(rough(mesh, np.random.default_rng(k), strength)) - positions(smooth) for k in range(12)]
        assert np.sqrt(np.mean(np.square(shifts))) == pytest.approx(POSITION_NOISE * strength, rel=0.2)
    once, again = (rough(mesh, np.random.default_rng(5)) for _ in range(2))
    assert (positions(once) == positions(again)).all()
    _, vertex = np.unique(positions(smooth).round(9), axis=0, return_inverse=True)
    first = np.unique(vertex, return_index=True)[1]
    assert np.allclose(positions(once), positions(once)[first][vertex.ravel()], atol=1e-6)
    assert all((part.values >= 0).all() and (part.values <= 1).all() for part in once.parts)


def test_rough_mesh_keeps_its_texture() -> None:
    uv = np.array([[[0, 0], [1, 0], [0, 1.0]]])
    mesh = rough(ColouredMesh((Part(np.eye(3)[None] * 0.2, uv, np.zeros((2, 2, 3))),)), np.random.default_rng(0))
    assert mesh.parts[0].values.min() == 0 and mesh.parts[0].values.max() == 1 and mesh.parts[0].texture is not None


def test_azimuth_relative_to_the_nearer_of_two_fronts() -> None:
    degrees = np.array([0.0, 30, 59, 61, 90, 121, 150, 180, 210, 300.5, 330])
    azimuth, clear = nearer_front(np.deg2rad(degrees))
    assert np.rad2deg(azimuth) == pytest.approx([0, 30, 59, 61, 90, 301, 330, 0, 30, 300.5, 330], abs=1e-3)
    assert clear.tolist() == [True, True, True, False, False, True, True, True, True, True, True]


def test_corrupted_samples_have_new_images_and_labels() -> None:
    box, labels, indices = ProbeToybox(3), Labels.of_toybox(), range(12)

    def samples(share: float):
        assets, rgb, truth = labelled(box, indices, 32, 2, labels)
        before = rgb.copy()
        corrupt(box, indices, assets, rgb, truth, share, np.random.default_rng(4))
        return assets, before, rgb, truth

    _, before, rgb, plain = samples(0)
    assert (before == rgb).all()
    assets, before, rgb, truth = samples(1)
    assert (np.abs(before - rgb).max((1, 2, 3)) > 0.02).all() and 0 <= rgb.min() and rgb.max() <= 1
    assert (truth.noun == plain.noun).all() and (truth.colour == plain.colour).all()
    two = (truth.seen == UNKNOWN_LABEL).all(1)
    assert 0 < two.sum() < len(two) and all(asset.front for k, asset in enumerate(assets) if two[2 * k])
    assert (truth.azimuth[~two] == plain.azimuth[~two]).all() and (truth.front[~two] == plain.front[~two]).all()
    assert (truth.azimuth[two & truth.front].cos() >= 0.49).all()


def test_two_fronted_mesh_shows_its_front_twice() -> None:
    mesh = dog()
    front, left, back = render_sides(mesh, [0, 90, 180])
    two = two_fronted(mesh)
    again, side, behind = render_sides(two, [0, 90, 180])
    assert np.abs(again - front).mean() < 0.02 < np.abs(back - front).mean()
    assert np.abs(behind - again).mean() < 1e-3
    np.testing.assert_allclose(side[:, ::-1], side, atol=0.35)  # symmetric except for pixels of the outline
    x = two.corners[..., 0]
    middle = (mesh.corners[..., 0].min() + mesh.corners[..., 0].max()) / 2
    assert x.min() + x.max() == pytest.approx(2 * middle, abs=1e-9) and x.max() == mesh.corners[..., 0].max()


def test_cut_interpolates_values() -> None:
    """A square with a colour ramp across the cut: half the area on each side, and a continuous ramp."""
    corners = np.array([[[-1, 0, 0], [1, 0, 0], [1, 0, 2]], [[-1, 0, 0], [1, 0, 2], [-1, 0, 2]]], float)
    ramp = np.repeat((corners[..., :1] + 1) / 2, 3, axis=2)
    halves = two_fronted(ColouredMesh((Part(corners, ramp),)))
    areas = [
        np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() / 2
        for c in (part.corners for part in halves.parts)
    ]
    assert areas == pytest.approx([2, 2]) and halves.parts[0].corners[..., 0].min() == 0
    np.testing.assert_allclose(halves.parts[0].values[..., 0], (halves.parts[0].corners[..., 0] + 1) / 2, atol=1e-12)
