import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.mesh_render import render
from tests.support.errors import refused
from threedgen.export.run_field import field_view
from threedgen.export.shape.from_field import dense_surface, field_surface
from threedgen.export.shape.topology import signed_volume, topology
from threedgen.geometry import raster
from threedgen.geometry.rigs import orbit
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.field.ngp import NGP
from threedgen.representations.losses import laplacian, normal_consistency
from threedgen.representations.mesh import dmtet
from threedgen.representations.mesh.dmtet import DMTet, marching_tetrahedra, remove_small_parts, tetrahedral_grid
from threedgen.representations.mesh.raster import antialias, surface_points, visible_faces_on_gpu
from threedgen.representations.options import DMTetConfig, NGPConfig
from threedgen.representations.shading import DiffuseMaterial, Material, Shading
from threedgen.representations.volume.options import MarchConfig
from threedgen.run.seeding import generator

ENCODING = {"n_levels": 3, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 2.0, "backend": "torch"}
PAINT: dict[str, Any] = {"encoding": ENCODING, "width": 8, "density_blob_scale": 20.0}
SIZE = 24


def mesh(resolution: int = 10, **options: Any) -> DMTet:
    config = DMTetConfig(resolution=resolution, paint=PAINT, **options)
    return DMTet(config, generator(0, 0, "field"))


def cameras(n: int = 2, size: int = SIZE) -> Any:
    return orbit(n, 0.3, 2.5, 0.7, size, size, azimuth=0.4)


def sphere(radius: float = 0.6, resolution: int = 12) -> tuple[Tensor, Tensor]:
    points, tets = tetrahedral_grid(resolution)
    return marching_tetrahedra(points, points.norm(dim=-1) - radius, tets)


def test_marching_tetrahedra_gives_closed_outward_surfaces() -> None:
    """Random signs with an outside border contain all 14 cases."""
    points, tets = tetrahedral_grid(6)
    distance = torch.randn(len(points), generator=generator(0, 0, "signs"))
    distance = torch.where((points.abs() > 0.99).any(-1), distance.abs(), distance)
    vertices, faces = (part.numpy() for part in marching_tetrahedra(points, distance, tets))
    ends = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
    edges = {tuple(pair) for pair in ends}
    assert len(edges) == len(ends) and all((b, a) in edges for a, b in edges), "each edge once in each direction"
    inside = float((distance < 0).float().mean())
    assert 0.1 < signed_volume(vertices.astype(np.float64), faces) / 8 < inside + 0.3


def test_gradient_of_the_distances_moves_the_surface() -> None:
    points, tets = tetrahedral_grid(12)
    distance = (points.norm(dim=-1) - 0.6).requires_grad_()
    moved, _ = marching_tetrahedra(points, distance, tets)
    (grad,) = torch.autograd.grad(moved.norm(dim=-1).sum(), distance)
    assert (grad <= 1e-6).all() and float(grad.sum()) == pytest.approx(-len(moved), rel=0.15)


def test_surface_points_lie_on_the_mesh() -> None:
    vertices, faces = sphere()
    result = surface_points(vertices, faces, cameras())
    assert (result.position.norm(dim=-1) - 0.6).abs().max() < 0.03 and len(result.pixel) > 50
    assert ((result.normal * result.position).sum(-1) / 0.6).min() > 0.95
    assert (result.normal * result.directions).sum(-1).max() < 0.1
    buffers = raster.rasterise(vertices.numpy(), faces.numpy(), cameras().c2w.numpy(), 0.7, SIZE)
    axis = -cameras().c2w[:, None, None, :3, 2]
    depth = torch.from_numpy(buffers.z) / (cameras().rays()[1] * axis).sum(-1)
    torch.testing.assert_close(result.depth, depth[torch.from_numpy(buffers.mask)], atol=1e-4, rtol=0)


@torch.autocast("cpu", enabled=False)
def rasterize(_: object, clip: Tensor, faces: Tensor, size: list[int], grad_db: bool) -> tuple[Tensor, Tensor]:
    """Stand-in of nvdiffrast: the nearest triangle at each pixel centre, in clip space (Olano and Greer 1997)."""
    centres = [2 * (torch.arange(count) + 0.5) / count - 1 for count in size]
    y, x = torch.meshgrid(*centres, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    images = []
    for corners in (view[faces.long()] for view in clip):  # (F, 3, 4)
        shares = pixels @ torch.linalg.inv_ex(corners[..., [0, 1, 3]]).inverse  # (F, P, 3); their depth is 1
        z = torch.where((shares >= 0).all(-1), (shares * corners[:, None, :, 2]).sum(-1), torch.inf)
        nearest = z.min(0)
        images.append(torch.where(nearest.values <= 1, nearest.indices + 1, 0).view(*size, 1).expand(-1, -1, 4))
    return torch.stack(images).float(), torch.empty(0)


@pytest.mark.parametrize("mixed", [False, True])
def test_nvdiffrast_finds_the_same_faces(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("nvdiffrast.torch")
    library.RasterizeCudaContext, library.rasterize = str, rasterize
    monkeypatch.setitem(sys.modules, "nvdiffrast", ModuleType("nvdiffrast"))
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", library)
    vertices, faces = sphere(0.6, 6)
    expected = surface_points(vertices, faces, cameras()).face
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        found = visible_faces_on_gpu(vertices, faces, cameras())
    assert (expected >= 0).any() and (found == expected).float().mean() > 0.995  # others have two equal faces


def coverage(vertices: Tensor, faces: Tensor, size: int = SIZE) -> Tensor:
    result = surface_points(vertices, faces, cameras(2, size))
    flat = torch.zeros(result.face.numel(), 1).index_fill(0, result.pixel, 1.0)
    return antialias(flat.view(*result.face.shape, 1), result.face, vertices, faces, cameras(2, size)).mean()


def test_antialias_covers_the_true_area_with_a_correct_gradient() -> None:
    vertices, faces = sphere(0.6, 8)
    scene = vertices.numpy(), faces.numpy(), cameras().c2w.numpy(), 0.7, SIZE
    exact = render(*scene, values=np.ones((len(vertices), 3)), supersample=8).alpha.mean()
    aliased = float((surface_points(vertices, faces, cameras()).face >= 0).float().mean())
    area = float(coverage(vertices, faces))
    assert abs(area - exact) < 0.003 and abs(area - exact) <= abs(aliased - exact) + 1e-4
    scale = torch.tensor(1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(coverage(vertices * scale, faces), scale)
    difference = (coverage(vertices * 1.03, faces) - coverage(vertices * 0.97, faces)) / 0.06
    assert float(gradient) == pytest.approx(float(difference), rel=0.25)


def render_mesh(field: DMTet, material: Any = None, **options: Any) -> Any:
    return field.render(cameras(), SolidBackground(), material or Material(), **options)


def test_initial_mesh_renders_as_a_ball() -> None:
    field = mesh()
    result = render_mesh(field)
    opacity = result.opacity.detach().view(2, SIZE, SIZE)
    assert (opacity[:, SIZE // 2, SIZE // 2] == 1).all() and (opacity[:, 0, 0] == 0).all()
    assert 0 <= float(opacity.min()) and float(opacity.max()) <= 1
    middle = (SIZE // 2) * SIZE + SIZE // 2
    assert float(result.depth[middle].detach()) == pytest.approx(2.0, abs=0.06)
    assert torch.equal(result.rgb[0], torch.full((3,), 0.5)) and result.orientation.max() < 0.05
    vertices, faces = field.mesh()
    assert topology(vertices, faces).manifold and np.abs(np.linalg.norm(vertices, axis=1) - 0.5).max() < 0.04


def test_all_parameters_get_gradients() -> None:
    field = mesh()
    lit = render_mesh(field, DiffuseMaterial(), shading=Shading("diffuse", 0.3, 0.7))
    (lit.rgb.square().mean() + normal_consistency(*lit.surface) + laplacian(*lit.surface)).backward()
    for name in ("distance", "deformation"):
        grad = getattr(field, name).grad
        assert grad is not None and grad.isfinite().all() and (grad != 0).any(), name
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in field.paint.feature_mlp.parameters())


def test_empty_mesh_renders_the_background() -> None:
    field = mesh(4)
    with torch.no_grad():
        field.distance.fill_(1.0)
    result = render_mesh(field)
    assert torch.equal(result.rgb, torch.full_like(result.rgb, 0.5)) and not result.opacity.any()
    result.rgb.sum().backward()
    assert field.distance.grad is not None and not field.distance.grad.any()
    with refused():
        field_surface(field_view(field, None, MarchConfig(), "cpu"), 16)


def test_dense_surface_keeps_the_mesh() -> None:
    field = mesh(14)
    view = field_view(field, None, MarchConfig(), "cpu")
    dense, notes = dense_surface(view, 24)
    assert notes == [] and len(dense.faces) == len(field.mesh()[1])
    assert np.abs(np.linalg.norm(dense.vertices, axis=1) - 0.5).max() < 0.03
    assert view.renderer is not None
    colours, opacities = view.renderer(cameras(3))
    assert colours.shape == (3, SIZE, SIZE, 3) and opacities.shape == (3, SIZE, SIZE)
    middle = opacities[:, SIZE // 2, SIZE // 2]
    assert (middle == 1).all() and 0 < colours[opacities > 0.99].mean() < 1


def test_init_from_field_takes_shape_and_colours() -> None:
    field = NGP(NGPConfig(**(PAINT | {"density_blob_std": 0.3})), generator(3, 0, "field"))
    initialised = mesh(12)
    initialised.init_from(field)
    size = np.linalg.norm(initialised.mesh()[0], axis=1)
    assert 0.1 < size.min() and size.max() < 0.45 and size.max() - size.min() < 0.1
    assert float(initialised.high.max()) < 0.8, "the grid is fitted to the object"
    x = torch.randn(9, 3, generator=generator(0, 0, "x")) * 0.2
    torch.testing.assert_close(initialised(x)[1], field(x)[1])
    again = mesh(12)
    again.init_from(initialised)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), initialised.state_dict().values(), strict=True)
    )


def test_init_from_refuses_other_sizes_and_empty_fields() -> None:
    with refused("stages", "NGP"):
        mesh().init_from(NGP(NGPConfig(**(PAINT | {"width": 4}))))
    with refused(None, "level"):
        mesh().init_from(NGP(NGPConfig(**(PAINT | {"density_bias": -60.0}))))


def test_init_from_functions_takes_shape_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the fused depth images of 3D Gaussians: density 80 inside, some outside, colours by position."""

    def density(x: Tensor) -> Tensor:
        return 80 * torch.sigmoid(-80 * (x.norm(dim=-1) - 0.6)).clamp(min=0.02)

    def colour(x: Tensor) -> Tensor:
        return 0.5 + 0.4 * x

    monkeypatch.setattr(dmtet, "POINTS_PER_QUERY", 1 << 13)  # smaller batches take less time
    made = mesh(resolution=24)
    made.init_from_functions(density, colour)
    vertices, faces = made.surface()
    assert len(faces) > 500 and torch.allclose(vertices.norm(dim=-1), torch.tensor(0.6), atol=0.015)
    assert float((made.paint(vertices)[1].sigmoid() - colour(vertices)).abs().mean()) < 0.03
    with refused("stages", "empty"):
        mesh().init_from_functions(lambda x: torch.zeros(len(x)), colour)
    with refused("start", "field.name=dmtet"):
        NGP(NGPConfig(**PAINT), generator(0, 0, "field")).init_from_functions(density, colour)


def test_remove_small_parts_keeps_the_large_part() -> None:
    inside = np.zeros((12, 12, 12), bool)
    inside[2:9, 2:9, 2:9] = inside[10, 10, 10] = True
    kept = remove_small_parts(inside)
    assert kept[5, 5, 5] and not kept[10, 10, 10]


def test_smoothness_losses_on_known_meshes() -> None:
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert float(normal_consistency(square, faces)) == pytest.approx(0, abs=1e-6)
    folded = square.clone()
    folded[3] = torch.tensor([0.0, 0.0, 1.0])
    assert float(normal_consistency(folded, faces)) > 0.1
    corner = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, -1, 0]])
    closed = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    neighbour_mean = (corner.sum(0) - corner) / 3
    expected = float(torch.linalg.vector_norm(neighbour_mean - corner, dim=-1).mean())
    assert float(laplacian(corner, closed)) == pytest.approx(expected, rel=1e-4)
