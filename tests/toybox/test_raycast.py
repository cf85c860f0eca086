from dataclasses import replace

import numpy as np
import pytest
import trimesh

from threedgen.geometry.poses import orbit_array
from threedgen.geometry.raster import rasterise
from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM, PRISM, SPHERE, TORUS, Asset, tessellate
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import Toybox

SOLIDS = {
    "sphere": (SPHERE, 1.0), "box": (BOX, 1.0), "cylinder": (FRUSTUM, 1.0), "cone": (FRUSTUM, 0.0),
    "frustum": (FRUSTUM, 0.4), "flowerpot": (FRUSTUM, 1.6), "torus": (TORUS, 0.25), "dome": (DOME, 1.0),
    "prism": (PRISM, 1.0),
}  # fmt: skip


def one_solid(name: str) -> Asset:
    """Build a stretched and rotated solid."""
    kind, param = SOLIDS[name]
    builder = Builder(np.random.default_rng(0), (0.5, 0.5, 0.5))
    builder.add(kind, (0.1, 0.2, 0.3), (1.0, 0.5, 0.2), rotate=(30, 50, 70), param=param)
    return Asset(builder.finish(1.0), "", "", "", "", "", "", "", False, labels=("body",))


def cameras(azimuths: list[float], fov: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    azimuth = np.deg2rad(azimuths)
    c2w = orbit_array(np.full_like(azimuth, 0.35), azimuth, np.full_like(azimuth, 2.6))
    return c2w, np.full(len(azimuth), fov)


@pytest.mark.parametrize("name", SOLIDS)
def test_render_of_single_solids_matches_their_mesh(name: str) -> None:
    c2w, fov = cameras([10.0, 130.0, 250.0])
    result = render([one_solid(name)], np.zeros(3, int), c2w, fov, 20, with_gbuffer=True)
    vertices, faces, _, _ = one_solid(name).mesh(48)
    hit = rasterise(vertices, faces, c2w, float(fov[0]), 20)
    corners = vertices[faces[hit.face]]
    rays = (corners * hit.bary[..., None]).sum(-2) - c2w[:, None, None, :3, 3]
    normal = np.cross(corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :])
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-30)
    both = hit.mask & result.mask
    assert both.sum() > 30
    assert (hit.mask != result.mask).sum() <= 0.02 * both.sum(), "the silhouettes differ"
    error = np.abs(np.linalg.norm(rays, axis=-1) - result.depth)[both]
    assert np.median(error) < 0.004 and np.quantile(error, 0.95) < 0.016  # error of the facets
    cosine = (normal * result.normal).sum(-1)[both]
    assert np.median(cosine) > 0.99 and np.quantile(cosine, 0.05) > 0.95
    assert np.array_equal(np.isfinite(result.depth), result.mask)
    assert np.allclose(np.linalg.norm(result.normal[result.mask], axis=-1), 1, atol=1e-5)
    assert (result.normal * rays).sum(-1)[both].max() < 1e-2, "a normal faces away from the camera"


@pytest.mark.parametrize("name", SOLIDS)
def test_solid_meshes_are_closed_and_face_outwards(name: str) -> None:
    kind, param = SOLIDS[name]
    mesh = trimesh.Trimesh(*tessellate(kind, param, 32))
    assert mesh.is_watertight and mesh.is_winding_consistent
    frustum = (1 + param + param**2) / 3 * np.pi * 2  # of height 2
    exact = {
        SPHERE: 4 / 3 * np.pi, BOX: 8.0, FRUSTUM: frustum, DOME: 2 / 3 * np.pi, PRISM: 4.0,
        TORUS: 2 * np.pi**2 * (1 - param) * param**2,
    }  # fmt: skip
    assert exact[kind] * 0.95 < mesh.volume <= exact[kind] * 1.0001
    asset = one_solid(name)
    mirrored = replace(asset.primitives[0], matrix=asset.primitives[0].matrix @ np.diag([1.0, -1.0, 1.0]))
    assert trimesh.Trimesh(*replace(asset, primitives=(mirrored,)).mesh()[:2]).volume > 0


def test_render_uses_asset_camera_and_background_of_each_view() -> None:
    box = Toybox(0)
    assets, c2w, fov = [box.asset(1), box.asset(2)], *cameras([20.0, 200.0, 75.0])
    owner, grey = np.array([1, 0, 1]), np.array([0.2, 0.5, 0.9])
    together = render(assets, owner, c2w, fov, 24, grey)
    for v in range(3):
        single = render([assets[owner[v]]], np.zeros(1, int), c2w[v : v + 1], fov[v : v + 1], 24, grey[v])
        assert np.array_equal(single.rgb[0], together.rgb[v])
        assert np.allclose(together.rgb[v, 0, 0], grey[v], atol=1e-6)
    # supersampling averages subpixels
    asset = one_solid("box")
    c2w, fov = cameras([33.0])
    fine = render([asset], np.zeros(1, int), c2w, fov, 96, supersample=1).rgb
    expected = fine.reshape(1, 24, 4, 24, 4, 3).mean((2, 4))
    one, sixteen = (render([asset], np.zeros(1, int), c2w, fov, 24, supersample=s).rgb for s in (1, 4))
    assert np.abs(sixteen - expected).mean() < 1e-5 < np.abs(one - expected).mean()
