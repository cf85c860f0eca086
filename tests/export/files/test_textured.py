import dataclasses
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.glb_check import Expected, check_collider, check_glb
from benchmarks.glb_reader import read_glb
from tests.support.errors import refused
from tests.support.textured_box import Textures, files, textured
from threedgen.export.asset import convex_parts, hull
from threedgen.export.files.glb import textured_glb_bytes, to_gltf_axes
from threedgen.export.files.obj_usdz import usdz_bytes
from threedgen.export.shape.mesh import TexturedMesh, placed, placement, vertex_tangents
from threedgen.export.shape.topology import topology

MESH, TEXTURES = textured()
PNGS = files(TEXTURES)
EXTRAS = {"prompt": "a ball \u00e9 </script>", "seed": 3}
DATA = textured_glb_bytes(MESH, PNGS, "ball", EXTRAS)
EXPECTED = Expected(320, 256, gltf_extras=("prompt", "seed"))


def codes(data: bytes, expected: Expected = EXPECTED) -> set[str]:
    return {finding.code for finding in check_glb(data, expected)}


def test_vertex_tangents_of_a_plane_follow_u() -> None:
    """With u = x and v = y, the tangent is +x, the bitangent +y and the sign +1."""
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    up = np.tile(np.float32([0, 0, 1]), (4, 1))
    assert np.allclose(vertex_tangents(points, faces, up, points[:, :2]), [1, 0, 0, 1])
    mirrored = points[:, :2] * (-1, 1) + (1, 0)
    assert np.allclose(vertex_tangents(points, faces, up, mirrored), [-1, 0, 0, -1])
    turned = points[:, [1, 0]] * (-1, 1) + (1, 0)  # u grows against y, v along x
    tangents = vertex_tangents(points, faces, up, turned)
    assert np.allclose(tangents, [0, -1, 0, 1])
    assert np.allclose(np.cross(up, tangents[:, :3]) * tangents[:, 3:], [1, 0, 0])


@pytest.mark.parametrize("flat", [False, True])
def test_vertex_tangents_are_unit_and_perpendicular_for_any_uv(flat: bool) -> None:
    """Also where the faces of a user's mesh have no area in the texture."""
    uv = np.zeros_like(MESH.uv) if flat else np.random.default_rng(0).random(MESH.uv.shape).astype(np.float32)
    tangents = vertex_tangents(MESH.vertices, MESH.faces, MESH.normals, uv)
    assert np.allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-5) and np.isin(tangents[:, 3], (-1, 1)).all()
    assert np.abs((tangents[:, :3] * MESH.normals).sum(1)).max() < 1e-5


def test_textured_glb_is_deterministic_and_omits_missing_textures() -> None:
    assert DATA == textured_glb_bytes(MESH, PNGS, "ball", EXTRAS)
    whole = read_glb(DATA)
    assert whole.gltf_extras == whole.tree["nodes"][0]["extras"] == EXTRAS
    orm = dict.fromkeys(("metallicRoughnessTexture", "occlusionTexture"), TEXTURES.orm)
    expected = {"baseColorTexture": TEXTURES.base_colour, "normalTexture": TEXTURES.normal} | orm
    assert all(np.array_equal(whole.images[name], image) for name, image in expected.items())
    alone = textured_glb_bytes(MESH, files(Textures(TEXTURES.base_colour)), "ball", EXTRAS)
    material = read_glb(alone).tree["materials"][0]
    assert "normalTexture" not in material and material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert codes(alone) == set()


def test_placement_sets_pivot_and_height() -> None:
    moved = MESH.vertices * 3 + np.float32([5, -2, 7])
    body = dataclasses.replace(MESH, vertices=moved)
    points = placed(body, *placement(moved, 1.7)).vertices
    low, high = points.min(0), points.max(0)
    assert low[2] == pytest.approx(0, abs=1e-6) and high[2] == pytest.approx(1.7, abs=1e-5)
    assert np.allclose(low[:2], -high[:2], atol=1e-5)
    assert np.allclose(np.ptp(placed(body, *placement(moved)).vertices, axis=0), np.ptp(moved, axis=0), atol=1e-5)


def test_usdz_is_read_by_pxr(tmp_path: object, capfd: pytest.CaptureFixture[str]) -> None:
    usd = pytest.importorskip("pxr.Usd")
    from pxr import UsdGeom

    path = f"{tmp_path}/ball.usdz"
    with open(path, "wb") as file:
        file.write(usdz_bytes(MESH, PNGS, "1 ball"))
    assert capfd.readouterr().err == "", "the library gives no warning"
    stage = usd.Stage.Open(path)
    body = UsdGeom.Mesh(stage.GetPrimAtPath("/_1_ball/mesh"))
    assert np.allclose(np.array(body.GetPointsAttr().Get()), to_gltf_axes(MESH.vertices))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    with zipfile.ZipFile(path) as archive:
        assert {"base_colour.png", "normal.png", "orm.png"} <= set(archive.namelist())
    texture = stage.GetPrimAtPath("/_1_ball/material/normal").GetAttribute("inputs:file").Get()
    assert texture.resolvedPath == f"{path}[normal.png]"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: {"vertices": m.vertices + 1}, "pivot"),
        (lambda m: {"normals": -m.normals}, "normals"),
        (lambda m: {"tangents": m.tangents * np.float32([1, 1, 1, -1])}, "tangents"),
        (lambda m: {"uv": np.abs(m.uv * 2 - 1)}, "uv-overlap"),
        (lambda m: {"faces": np.where(m.faces == 0, 10**5, m.faces)}, "indices"),
    ],
)
def test_check_glb_finds_mesh_errors(change: Callable[[TexturedMesh], dict[str, np.ndarray]], code: str) -> None:
    data = textured_glb_bytes(dataclasses.replace(MESH, **change(MESH)), PNGS, "ball", EXTRAS)
    assert code in codes(data)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_hull_is_small_convex_and_nearly_full(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-1, 1, (900, 3)).astype(np.float32)
    points = points[np.linalg.norm(points, axis=1) < 1] * np.float32([1, 0.3, 2])
    vertices, faces = hull(points)
    full = trimesh.Trimesh(points, process=False).convex_hull.volume
    assert topology(vertices, faces).solid and len(faces) <= 128
    assert 0.85 * full <= topology(vertices, faces).volume <= 1.0001 * full
    assert trimesh.Trimesh(vertices, faces).is_convex
    assert check_collider([(vertices, faces)], points) == []
    assert "error" in {finding.severity for finding in check_collider([(vertices, faces[1:])], points)}
    (finding,) = check_collider([(vertices / 2, faces)], points)
    assert (finding.severity, finding.code) == ("warning", "collider")
    with refused("collision", "none"):
        hull(points * np.float32([1, 1, 0]))


def test_convex_parts_follow_a_torus() -> None:
    pytest.importorskip("coacd")
    body = trimesh.creation.torus(0.6, 0.15, major_sections=24, minor_sections=10)
    vertices, faces = np.asarray(body.vertices, np.float32), np.asarray(body.faces, np.int32)
    parts = convex_parts(vertices, faces)
    assert 2 <= len(parts) <= 8 and check_collider(parts, vertices) == []
    assert all(len(points) <= 32 for points, _ in parts)
    volume = sum(topology(*part).volume for part in parts)
    assert body.volume < volume < 0.8 * topology(*hull(vertices)).volume
