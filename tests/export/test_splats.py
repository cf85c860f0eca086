from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from threedgen.export.files.glb import GLTF_AXES, splat_glb_bytes, to_gltf_axes
from threedgen.export.files.splats import SplatArrays, ply_bytes
from threedgen.geometry.gltf_data import GltfData
from threedgen.geometry.images import to_linear
from threedgen.geometry.side_files import SideFiles
from threedgen.representations.gaussians.field import Gaussians
from threedgen.representations.gaussians.points import PLY_AXES
from threedgen.representations.options import GaussiansConfig
from threedgen.testing import seeded


@pytest.fixture(scope="module", params=[0, 1])
def field(request: pytest.FixtureRequest) -> Gaussians:
    made = Gaussians(GaussiansConfig(count=30, sh_degree=request.param, opacity=0.6), seeded(0))
    rng = seeded(1)
    for name, amount in (("log_scales", 0.5), ("quaternions", 1.0), ("features", 0.3), ("opacity_logits", 1.0)):
        parameter = getattr(made, name)
        parameter.data += amount * torch.randn(parameter.shape, generator=rng)
    return made


def gltf(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the JSON and the attributes of the only primitive of a GLB file."""
    file = GltfData(data, SideFiles(Path()))
    attributes = file.tree["meshes"][0]["primitives"][0]["attributes"]
    return file.tree, {name: file.accessor_array(index) for name, index in attributes.items()}


def test_glb_has_the_attributes_of_the_extension(field: Gaussians) -> None:
    splats = SplatArrays.of(field)
    data = splat_glb_bytes(splats, "gaussians", {"prompt": "a ball"})
    tree, attributes = gltf(data)
    primitive = tree["meshes"][0]["primitives"][0]
    assert tree["extensionsUsed"] == ["KHR_gaussian_splatting"] and "extensionsRequired" not in tree
    assert primitive["mode"] == 0 and "indices" not in primitive
    options = primitive["extensions"]["KHR_gaussian_splatting"]
    assert options == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    names = ["ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0"]
    names += [f"SH_DEGREE_1_COEF_{k}" for k in range(3)] if field.options.sh_degree else []
    assert attributes.keys() == {"POSITION", "COLOR_0", *(f"KHR_gaussian_splatting:{name}" for name in names)}
    found = {name.rpartition(":")[2]: values for name, values in attributes.items()}
    np.testing.assert_array_equal(found["POSITION"], to_gltf_axes(splats.means))
    np.testing.assert_allclose(found["SCALE"], splats.scales, rtol=1e-6)
    np.testing.assert_allclose(found["OPACITY"][:, 0], splats.opacities, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found["ROTATION"], axis=1), 1, rtol=1e-5)
    colours = np.clip(splats.colours, 0, 1)
    np.testing.assert_allclose(found["COLOR_0"][:, :3], to_linear(colours), atol=1e-5)
    harmonics = np.stack([found[name] for name in names[3:]], axis=1)
    turns = found["ROTATION"][:, [3, 0, 1, 2]]
    back = SplatArrays(found["POSITION"], turns, found["SCALE"], splats.opacities, harmonics).rotated(GLTF_AXES.T)
    for name in ("means", "scales", "harmonics"):
        np.testing.assert_allclose(getattr(back, name), getattr(splats, name), atol=1e-5)
    turns, expected = (Rotation.from_quat(part.quaternions[:, [1, 2, 3, 0]]).as_matrix() for part in (back, splats))
    np.testing.assert_allclose(turns, expected, atol=1e-5)


def test_ply_has_the_properties_of_3d_gaussian_splatting(field: Gaussians, tmp_path: Path) -> None:
    splats = SplatArrays.of(field)
    (tmp_path / "gaussians.ply").write_bytes(ply_bytes(splats))
    rest = 9 * field.options.sh_degree
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{k}" for k in range(3)), *(f"f_rest_{k}" for k in range(rest))]
    names += ["opacity", *(f"scale_{k}" for k in range(3)), *(f"rot_{k}" for k in range(4))]
    head, _, body = (tmp_path / "gaussians.ply").read_bytes().partition(b"end_header\n")
    assert [line.split()[-1] for line in head.decode().splitlines() if "property float" in line] == names
    table = dict(zip(names, np.frombuffer(body, "<f4").reshape(30, len(names)).T, strict=True))
    x, y, z = splats.means.T
    np.testing.assert_allclose(np.stack([table[k] for k in "xyz"]), np.stack([-y, -z, x]), rtol=1e-6)
    np.testing.assert_allclose(table["opacity"], field.opacity_logits.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["scale_1"], field.log_scales.detach().numpy()[:, 1], rtol=1e-5)
    turned = Rotation.from_quat(np.stack([table[f"rot_{k}"] for k in (1, 2, 3, 0)], 1)).as_matrix()
    rotations = Rotation.from_quat(splats.quaternions[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(turned, PLY_AXES @ rotations, atol=1e-5)
    np.testing.assert_allclose(table["f_dc_2"], splats.harmonics[:, 0, 2], rtol=1e-6)
    if rest:  # coefficients of red first: -y, z, -x in the axes of the file
        harmonics = np.stack([table[f"f_rest_{k}"] for k in range(9)], 1).reshape(30, 3, 3)
        expected = splats.harmonics[:, [2, 3, 1]].transpose(0, 2, 1) * [1, -1, -1]
        np.testing.assert_allclose(harmonics, expected, rtol=1e-5, atol=1e-6)
    assert len(trimesh.load(tmp_path / "gaussians.ply").vertices) == 30  # type: ignore[union-attr]


def test_exported_ply_starts_another_run(field: Gaussians, tmp_path: Path) -> None:
    (tmp_path / "gaussians.ply").write_bytes(ply_bytes(SplatArrays.of(field)))
    made = Gaussians(GaussiansConfig(count=5), seeded(2))
    made.init_from_file(tmp_path / "gaussians.ply")
    torch.testing.assert_close(made.means.detach(), field.means.detach())
    expected = (0.5 + 0.28209479 * field.features[:, 0]).detach().clamp(0.001, 0.999)
    torch.testing.assert_close(made.colours(torch.zeros(1, 30, 3))[0].detach(), expected)
