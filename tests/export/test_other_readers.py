import io
import shutil
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from tests.support import janus_stub
from tests.support.other_readers import READERS, Mesh, Meshes, difference, read_godot
from tests.support.textured_box import files, textured
from threedgen.export.files.glb import plain_glb_bytes, save_glb, textured_glb_bytes, to_gltf_axes
from threedgen.export.files.obj_usdz import obj_zip, usdz_bytes
from threedgen.export.options import ENGINES
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.geometry.images import png

MESH, TEXTURES = textured()
PNGS = files(TEXTURES)
EXTRAS = {"prompt": "a ball \u00e9 </script>", "seed": 3}
DATA = textured_glb_bytes(MESH, PNGS, "ball", EXTRAS)


def test_assimp_reads_mesh_and_textures(tmp_path: Path) -> None:
    """Assimp is the importer of many engines; its bitangents show how it uses the tangent sign."""
    assimp: Any = pytest.importorskip("assimp_py")
    (tmp_path / "ball.glb").write_bytes(DATA)
    scene = assimp.import_file(str(tmp_path / "ball.glb"), assimp.Process_Triangulate)
    assert (scene.num_meshes, scene.root_node.name) == (1, "ball")
    (mesh,) = scene.meshes
    order = MESH.faces.reshape(-1)  # assimp reorders vertices, so compare face corners

    def corners(values: Any, columns: int = 3) -> np.ndarray:
        return np.asarray(values).reshape(-1, columns)[np.asarray(mesh.indices)]

    assert mesh.num_vertices == len(MESH.vertices) and mesh.num_faces == len(MESH.faces)
    assert np.array_equal(corners(mesh.vertices), to_gltf_axes(MESH.vertices)[order])
    normals, tangents = to_gltf_axes(MESH.normals), to_gltf_axes(MESH.tangents[:, :3])
    assert np.allclose(corners(mesh.normals), normals[order], atol=1e-6)
    assert np.allclose(corners(mesh.tangents), tangents[order], atol=1e-6)
    bitangents = np.cross(normals, tangents) * MESH.tangents[:, 3:]
    assert np.allclose(corners(mesh.bitangents), bitangents[order], atol=1e-6)
    uv = corners(mesh.texcoords[0], mesh.num_uv_components[0])[:, :2]
    assert np.allclose(uv, MESH.uv[order], atol=1e-6), "v upwards"
    textures = scene.materials[mesh.material_index]["TEXTURES"]
    kinds = assimp.TextureType_DIFFUSE, assimp.TextureType_NORMALS, assimp.TextureType_LIGHTMAP
    assert len({textures[kind][0] for kind in kinds}) == 3, "base colour, normal map, occlusion"


LEVELS = {"ball": MESH, "ball_LOD1": textured(trimesh.creation.box((1, 2, 3)), 64)[0]}
MAPS = {
    "base_colour": TEXTURES.base_colour, "normal": TEXTURES.normal,
    "roughness": TEXTURES.orm, "metallic": TEXTURES.orm, "occlusion": TEXTURES.orm,
}  # fmt: skip
ALL = set(MAPS)
SLOTS = {
    ("trimesh", ".glb"): ALL, ("Blender", ".glb"): ALL - {"occlusion"}, ("three.js", ".glb"): ALL,
    ("trimesh", ".obj"): {"base_colour"}, ("Blender", ".obj"): {"base_colour", "normal"},
    ("three.js", ".obj"): {"base_colour", "normal"},
    ("Blender", ".usdz"): ALL - {"occlusion"}, ("three.js", ".usdz"): ALL,
}  # fmt: skip
"""Textures that a program takes from a format."""
LIMITS = {
    "vertices": 0, "triangles": 0, "corners": 1e-6, "bounds": 1e-6, "area": 1e-6, "normals": 0.05, "uv": 1e-6,
    "colours": 0, "maps": 0, "factors": 0,
}  # fmt: skip
"""Largest differences; metres, degrees of normals (single precision), levels of colours."""


def expected(mesh: TexturedMesh | tuple[Any, Any], material: str = "") -> Mesh:
    """Return an exported mesh, or a pair of vertices and faces, in glTF axes."""
    bare = isinstance(mesh, tuple)
    vertices, faces = mesh if bare else (mesh.vertices, mesh.faces)
    corners, rows = to_gltf_axes(vertices)[faces].reshape(-1, 3), faces.reshape(-1)
    if bare:
        return Mesh(len(vertices), corners, material=material)
    return Mesh(len(vertices), corners, to_gltf_axes(mesh.normals)[rows], mesh.uv[rows], MAPS, {}, material)


def exports(folder: Path) -> Meshes:
    """Write a level of detail, colliders of both engines, vertex colours, OBJ and USDZ; return their meshes."""
    parts = [(janus_stub.box().vertices + np.float32(k), janus_stub.box().faces) for k in range(2)]
    found = {"plain.glb": {"plain": expected(parts[0], "plain")}}
    found["ball_LOD1.glb"] = {"ball_LOD1": expected(MESH, "ball_LOD1")}
    (folder / "ball_LOD1.glb").write_bytes(textured_glb_bytes(MESH, PNGS, "ball_LOD1", EXTRAS))
    save_glb(janus_stub.box(), folder / "plain.glb")
    for engine, pattern in ENGINES.items():
        nodes = {pattern.format(name="ball", number=number): part for number, part in enumerate(parts)}
        found[f"{engine}.glb"] = {name: expected(part) for name, part in nodes.items()}
        (folder / f"{engine}.glb").write_bytes(plain_glb_bytes(nodes))
    with zipfile.ZipFile(io.BytesIO(obj_zip(LEVELS, PNGS, "ball"))) as archive:
        archive.extractall(folder)
    found |= {f"{name}.obj": {name: expected(mesh, "ball")} for name, mesh in LEVELS.items()}
    if find_spec("pxr"):
        (folder / "ball.usdz").write_bytes(usdz_bytes(MESH, PNGS, "ball"))
        found["ball.usdz"] = {"mesh": expected(MESH, "material")}
    return found


@pytest.mark.parametrize(("roughness", "metallic"), [(255, 0), (89, 255)])
def test_mtl_has_the_values_of_the_orm_texture(roughness: int, metallic: int) -> None:
    orm = np.full((8, 8, 3), (255, roughness, metallic), np.uint8)
    with zipfile.ZipFile(io.BytesIO(obj_zip({"ball": MESH}, PNGS | {"orm": png(orm)}, "ball"))) as archive:
        rows = dict(line.split(" ", 1) for line in archive.read("ball.mtl").decode().splitlines())
    assert np.allclose((float(rows["Pr"]), float(rows["Pm"])), np.array((roughness, metallic)) / 255, atol=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("program", READERS)
def test_programs_read_exports(tmp_path: Path, program: str) -> None:
    installed, read = READERS[program]
    if not installed():
        pytest.skip(f"no {program} here: see tests/support/other_readers.py")
    written = exports(tmp_path)
    found = read([tmp_path / name for name in written], tmp_path)
    assert len(found) == len(written) - (program == "trimesh" and "ball.usdz" in written)
    for file, meshes in found.items():
        assert set(meshes) == set(written[file]), file
        for name, mesh in meshes.items():
            slots = SLOTS[program, Path(file).suffix]
            truth = written[file][name]
            maps = {slot: image for slot, image in truth.maps.items() if slot in slots}
            differences = difference(mesh, replace(truth, maps=maps))
            wrong = {key: value for key, value in differences.items() if value > LIMITS[key]}
            assert not wrong, (file, name)
            assert mesh.material == truth.material or file.endswith("usdz")  # three.js does not name it


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("godot3-server") is None, reason="no Godot here: see tests/support/other_readers.py")
def test_godot_imports_meshes_with_textures_and_convex_colliders(tmp_path: Path) -> None:
    written = exports(tmp_path)
    boxes = [trimesh.creation.box((1, 2, 3)), trimesh.creation.box(bounds=((1, 1, 1), (2, 2, 2)))]  # closed and convex
    nodes = {ENGINES["godot"].format(name="ball", number=k): box for k, box in enumerate(boxes)}
    parts = {name: (np.asarray(box.vertices, np.float32), np.asarray(box.faces)) for name, box in nodes.items()}
    (tmp_path / "godot.glb").write_bytes(plain_glb_bytes(parts))
    found = read_godot(sorted(tmp_path.glob("*.glb")), tmp_path / "project")
    (mesh,) = found["ball_LOD1.glb"]["meshes"].values()
    truth = written["ball_LOD1.glb"]["ball_LOD1"]
    assert mesh["triangles"] == len(truth.corners) / 3
    assert np.allclose((mesh["low"], mesh["high"]), truth.bounds(), atol=1e-5)
    names = ("albedo", "normal", "roughness", "metallic", "ao")
    assert mesh["maps"] == [f"{name}_texture" for name in names]
    collider = found["godot.glb"]
    assert collider["meshes"] == {}, "not rendered"
    assert len(collider["convex"]) == len(parts) == 2
    for shapes, part in zip(collider["convex"].values(), parts.values(), strict=True):
        assert [len(points) for points in shapes] == [8]
        bounds, truth = np.array((np.min(shapes[0], 0), np.max(shapes[0], 0))), expected(part).bounds()
        assert np.abs(bounds - truth).max() <= 0.015 * np.ptp(truth, 0).max(), "Godot 3 makes them of small cubes"
