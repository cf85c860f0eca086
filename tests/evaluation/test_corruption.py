import numpy as np
import pytest

from threedgen.data.coloured_mesh import ColouredMesh, Part
from threedgen.evaluation.corruption import POSITION_NOISE, rough, subdivided, two_fronted
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.evaluation.labels import UNKNOWN_LABEL, Labels, ProbeToybox, corrupt, labelled
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


def test_rough_mesh_has_the_noise_of_its_strength_stays_closed_and_keeps_its_texture() -> None:
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
    uv = np.array([[[0, 0], [1, 0], [0, 1.0]]])
    mesh = rough(ColouredMesh((Part(np.eye(3)[None] * 0.2, uv, np.zeros((2, 2, 3))),)), np.random.default_rng(0))
    assert mesh.parts[0].values.min() == 0 and mesh.parts[0].values.max() == 1 and mesh.parts[0].texture is not None


def test_subdivision_makes_no_cracks() -> None:
    """A long thin triangle beside a small one; the shared edge is short and is split in neither."""
    a, b, far, near = np.array([[0, 0, 0], [0.05, 0, 0], [0.02, 1, 0], [0.02, -0.05, 0]])
    corners = np.stack([[a, b, far], [b, a, near]])
    fine = subdivided(Part(corners, np.ones_like(corners)))
    edges = np.linalg.norm(fine.corners - np.roll(fine.corners, -1, axis=1), axis=2)
    assert edges.max() <= 0.1 and len(fine.corners) > 8
    assert not (np.isclose(fine.corners[..., 1], 0) & (fine.corners[..., 0] > 0) & (fine.corners[..., 0] < 0.05)).any()


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
