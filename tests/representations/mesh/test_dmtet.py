"""DMTet: the tetrahedral grid and its surface, the differentiable rasteriser, and where a mesh begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.mesh_render import render
from threedgen.config import ConfigError, load
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import RunField, view_of
from threedgen.export.shape.from_field import dense_surface, surface_of
from threedgen.export.shape.topology import signed_volume, topology
from threedgen.export.task import export
from threedgen.geometry import raster
from threedgen.geometry.rigs import orbit
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.field.ngp import NGP
from threedgen.representations.mesh.dmtet import DMTet, large_parts
from threedgen.representations.mesh.losses import laplacian, normal_consistency, vertex_normals
from threedgen.representations.mesh.raster import antialias, surface_points
from threedgen.representations.mesh.tetrahedra import marching_tetrahedra, tetrahedral_grid
from threedgen.representations.options import DMTetConfig, MarchConfig, NGPConfig
from threedgen.representations.shading import DiffuseMaterial, NoMaterial, Shading
from threedgen.run.seeding import generator

PAINT: dict[str, Any] = {
    "encoding": {
        "n_levels": 3, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 2.0, "backend": "torch",
    },
    "width": 8, "density_blob_scale": 20.0,
}  # fmt: skip
SIZE = 24


def mesh(resolution: int = 10, **options: Any) -> DMTet:
    config = DMTetConfig(resolution=resolution, paint=PAINT, **options)
    return DMTet(config, generator(0, 0, "field"))


def cameras(n: int = 2, size: int = SIZE) -> Any:
    return orbit(n, 0.3, 2.5, 0.7, size, size, azimuth=0.4)


def sphere(radius: float = 0.6, resolution: int = 12) -> tuple[Tensor, Tensor]:
    points, tets = tetrahedral_grid(resolution)
    return marching_tetrahedra(points, points.norm(dim=-1) - radius, tets)


# ---------------------------------------------------------------- tetrahedra


@pytest.mark.parametrize("resolution", [1, 2, 5])
def test_the_tetrahedra_fill_the_cube(resolution: int) -> None:
    points, tets = tetrahedral_grid(resolution)
    assert len(points) == (resolution + 1) ** 3 and len(tets) == 6 * resolution**3
    a, b, c, d = (points[tets[:, k]] for k in range(4))
    volume = (torch.linalg.cross(b - a, c - a) * (d - a)).sum(-1) / 6
    assert (volume > 0).all() and float(volume.sum()) == pytest.approx(8, rel=1e-5)
    faces = torch.cat([tets[:, list(k)] for k in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))]).sort(dim=1).values
    _, times = torch.unique(faces, dim=0, return_counts=True)
    assert int((times == 1).sum()) == 12 * resolution**2 and int(times.max()) == 2, "neighbours meet in whole faces"


def test_every_kind_of_cut_is_closed_and_faces_outward() -> None:
    """Random signs inside, outside all around: each of the 14 cuts occurs, and the surface is closed."""
    points, tets = tetrahedral_grid(6)
    distance = torch.randn(len(points), generator=generator(0, 0, "signs"))
    distance = torch.where((points.abs() > 0.99).any(-1), distance.abs(), distance)
    vertices, faces = (part.numpy() for part in marching_tetrahedra(points, distance, tets))
    ends = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
    forth = {tuple(pair) for pair in ends}
    assert len(forth) == len(ends) and all((b, a) in forth for a, b in forth), "each edge once in each direction"
    inside = float((distance < 0).float().mean())
    assert 0.1 < signed_volume(vertices.astype(np.float64), faces) / 8 < inside + 0.3


def test_a_ball_is_a_ball_and_follows_its_distances() -> None:
    vertices, faces = sphere()
    found = topology(vertices.numpy(), faces.numpy().astype(np.int32))
    assert found.manifold and found.volume > 0, found
    assert (vertices.norm(dim=-1) - 0.6).abs().max() < 0.02
    outward = (vertex_normals(vertices, faces) * vertices).sum(-1) / vertices.norm(dim=-1)
    assert outward.min() > 0.95
    points, tets = tetrahedral_grid(12)
    distance = (points.norm(dim=-1) - 0.6).requires_grad_()
    moved, _ = marching_tetrahedra(points, distance, tets)
    (grad,) = torch.autograd.grad(moved.norm(dim=-1).sum(), distance)
    assert (grad <= 1e-6).all() and float(grad.sum()) == pytest.approx(-len(moved), rel=0.15)


# ---------------------------------------------------------------- the rasteriser


def test_pixels_see_points_of_the_surface() -> None:
    vertices, faces = sphere()
    seen = surface_points(vertices, faces, cameras())
    assert (seen.position.norm(dim=-1) - 0.6).abs().max() < 0.03 and len(seen.number) > 50
    assert ((seen.normal * seen.position).sum(-1) / 0.6).min() > 0.95
    assert (seen.normal * seen.directions).sum(-1).max() < 0.1
    buffers = raster.rasterise(vertices.numpy(), faces.numpy(), cameras().c2w.numpy(), 0.7, SIZE)
    axis = -cameras().c2w[:, None, None, :3, 2]
    depth = torch.from_numpy(buffers.z) / (cameras().rays()[1] * axis).sum(-1)
    torch.testing.assert_close(seen.depth, depth[torch.from_numpy(buffers.mask)], atol=1e-4, rtol=0)


def coverage(vertices: Tensor, faces: Tensor, size: int = SIZE) -> Tensor:
    """Share of the pictures that the mesh covers."""
    seen = surface_points(vertices, faces, cameras(2, size))
    flat = torch.zeros(seen.face.numel(), 1).index_fill(0, seen.number, 1.0)
    return antialias(flat.view(*seen.face.shape, 1), seen.face, vertices, faces, cameras(2, size)).mean()


def test_the_outline_is_smooth_and_its_gradient_true() -> None:
    """The covered area of a growing ball: closer to the truth than whole pixels, and its slope is the gradient."""
    vertices, faces = sphere(0.6, 8)
    seen = vertices.numpy(), faces.numpy(), cameras().c2w.numpy(), 0.7, SIZE
    fine = render(*seen, values=np.ones((len(vertices), 3)), supersample=8).alpha.mean()
    whole = float((surface_points(vertices, faces, cameras()).face >= 0).float().mean())
    found = float(coverage(vertices, faces))
    assert abs(found - fine) < 0.003 and abs(found - fine) <= abs(whole - fine) + 1e-4
    scale = torch.tensor(1.0, requires_grad=True)
    (slope,) = torch.autograd.grad(coverage(vertices * scale, faces), scale)
    difference = (coverage(vertices * 1.03, faces) - coverage(vertices * 0.97, faces)) / 0.06
    assert float(slope) == pytest.approx(float(difference), rel=0.25)


def test_moving_sideways_changes_the_picture_as_it_should() -> None:
    """Mass of the right half of the picture, for a ball that moves to the right."""
    vertices, faces = sphere(0.4, 8)
    camera = orbit(1, 0.0, 2.5, 0.7, SIZE, SIZE)  # looks along -x, +y to the right

    def right(shift: Tensor) -> Tensor:
        moved = vertices + shift * torch.tensor([0.0, 1.0, 0.0])
        seen = surface_points(moved, faces, camera)
        flat = torch.zeros(seen.face.numel(), 1).index_fill(0, seen.number, 1.0).view(*seen.face.shape, 1)
        weight = torch.linspace(-1, 1, SIZE).view(1, 1, SIZE, 1)
        return (antialias(flat, seen.face, moved, faces, camera) * weight).mean()

    zero = torch.tensor(0.0, requires_grad=True)
    (slope,) = torch.autograd.grad(right(zero), zero)
    difference = (right(torch.tensor(0.05)) - right(torch.tensor(-0.05))) / 0.1
    assert float(slope) > 0 and float(slope) == pytest.approx(float(difference), rel=0.2)


# ---------------------------------------------------------------- the field


def look(field: DMTet, material: Any = None, **options: Any) -> Any:
    return field.render(cameras(), SolidBackground(), material or NoMaterial(), **options)


def test_it_is_seen_as_the_ball_that_it_begins_as() -> None:
    field = mesh()
    seen = look(field)
    opacity = seen.opacity.detach().view(2, SIZE, SIZE)
    assert (opacity[:, SIZE // 2, SIZE // 2] == 1).all() and (opacity[:, 0, 0] == 0).all()
    assert 0 <= float(opacity.min()) and float(opacity.max()) <= 1
    middle = (SIZE // 2) * SIZE + SIZE // 2
    assert float(seen.depth[middle]) == pytest.approx(2.0, abs=0.06)
    assert torch.equal(seen.rgb[0], torch.full((3,), 0.5)) and seen.away.max() < 0.05
    vertices, faces = field.mesh()
    assert topology(vertices, faces).manifold and np.abs(np.linalg.norm(vertices, axis=1) - 0.5).max() < 0.04


def test_distances_places_and_paint_all_learn() -> None:
    field = mesh()
    lit = look(field, DiffuseMaterial(), shading=Shading("diffuse", 0.3, 0.7))
    (lit.rgb.square().mean() + normal_consistency(*lit.surface) + laplacian(*lit.surface)).backward()
    for name in ("distance", "deformation"):
        grad = getattr(field, name).grad
        assert grad is not None and grad.isfinite().all() and (grad != 0).any(), name
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in field.paint.feature_mlp.parameters())


def test_a_mesh_takes_the_shape_that_is_asked_for() -> None:
    """From its silhouettes alone, a ball of 0.5 grows towards one of 0.65."""
    field = mesh(8)
    wanted = coverage(*sphere(0.65, 12))
    optimiser = torch.optim.Adam([field.distance], 0.02)
    errors = []
    for _ in range(8):
        error = (look(field).opacity.mean() - wanted).square()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.3 * errors[0], errors


def test_nothing_left_is_a_picture_of_the_background() -> None:
    field = mesh(4)
    with torch.no_grad():
        field.distance.fill_(1.0)
    seen = look(field)
    assert torch.equal(seen.rgb, torch.full_like(seen.rgb, 0.5)) and not seen.opacity.any()
    seen.rgb.sum().backward()
    assert field.distance.grad is not None and not field.distance.grad.any()
    with pytest.raises(ConfigError, match="no triangles left"):
        surface_of(view_of(field, None, MarchConfig(), "cpu"), 16)


def test_its_files_are_made_of_its_own_triangles() -> None:
    field = mesh(14)
    view = view_of(field, None, MarchConfig(), "cpu")
    dense, notes = dense_surface(view, 24)
    assert notes == [] and len(dense.faces) == len(field.mesh()[1])
    assert np.abs(np.linalg.norm(dense.vertices, axis=1) - 0.5).max() < 0.03
    assert view.pictures is not None
    colours, opacities = view.pictures(cameras(3))
    assert colours.shape == (3, SIZE, SIZE, 3) and opacities.shape == (3, SIZE, SIZE)
    middle = opacities[:, SIZE // 2, SIZE // 2]
    assert (middle == 1).all() and 0 < colours[opacities > 0.99].mean() < 1


def test_its_asset_is_made_like_any_other() -> None:
    config = load("magic3d-toybox", ["prompt=a ball"])
    view = view_of(mesh(14), None, config.march, "cpu")
    options = AssetConfig(budget=200, texture=64, lods=(), refine=2, resolution=16)
    asset = export(RunField(view, config, config.trainer.max_steps), options, nearest_budget=True)
    assert asset.notes == [] and any(name.endswith(".glb") for name in asset.files)
    assert 50 < max(asset.figures["levels"].values()) <= 200 and asset.figures["topology"]["open_edges"] == 0


def test_it_begins_from_a_field() -> None:
    field = NGP(NGPConfig(**(PAINT | {"density_blob_std": 0.3})), generator(3, 0, "field"))
    grown = mesh(12)
    grown.start(field)
    size = np.linalg.norm(grown.mesh()[0], axis=1)
    assert 0.1 < size.min() and size.max() < 0.45 and size.max() - size.min() < 0.1
    assert float(grown.high.max()) < 0.8, "the grid is laid around it"
    x = torch.randn(9, 3, generator=generator(0, 0, "x")) * 0.2
    torch.testing.assert_close(grown(x)[1], field(x)[1])
    again = mesh(12)
    again.start(grown)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), grown.state_dict().values(), strict=True))


def test_what_cannot_become_a_mesh_is_said() -> None:
    with pytest.raises(ConfigError, match="of its own kind and sizes"):
        mesh().start(NGP(NGPConfig(**(PAINT | {"width": 4}))))
    empty = NGP(NGPConfig(**(PAINT | {"density_bias": -60.0})))
    with pytest.raises(ConfigError, match="without matter"):
        mesh().start(empty)


def test_small_parts_are_left_out() -> None:
    inside = np.zeros((12, 12, 12), bool)
    inside[2:9, 2:9, 2:9] = inside[10, 10, 10] = True
    assert large_parts(inside)[5, 5, 5] and not large_parts(inside)[10, 10, 10]


def test_smoothness_is_that_of_the_edges() -> None:
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert float(normal_consistency(square, faces)) == pytest.approx(0, abs=1e-6)
    folded = square.clone()
    folded[3] = torch.tensor([0.0, 0.0, 1.0])
    assert float(normal_consistency(folded, faces)) > 0.1
    for rough in (normal_consistency, laplacian):
        fine, coarse = (float(rough(*sphere(0.6, n))) for n in (16, 6))
        assert fine < coarse
    corner = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, -1, 0]])
    closed = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    amidst = (corner.sum(0) - corner) / 3
    expected = float(torch.linalg.vector_norm(amidst - corner, dim=-1).mean())
    assert float(laplacian(corner, closed)) == pytest.approx(expected, rel=1e-4)
