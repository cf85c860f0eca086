import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support import janus_stub
from tests.support.errors import refused
from threedgen.data.coloured_mesh import DEFAULT_COLOUR, ColouredMesh, EmptyMesh, fit_to_ball, read_mesh
from threedgen.export.files.glb import save_glb
from threedgen.geometry.poses import orbit_array
from threedgen.geometry.submesh import MAX_TRIANGLES
from threedgen.toybox.world.toybox import Toybox, render_azimuths, toybox_mesh

DISTANCE, FOV = 0.95 / np.tan(np.deg2rad(20)), np.deg2rad(40)


def render(mesh: ColouredMesh, degrees: list[float], size: int = 32, light: bool = False) -> np.ndarray:
    a = np.deg2rad(np.array(degrees, float))
    c2w = orbit_array(np.full_like(a, np.deg2rad(15)), a, np.full_like(a, DISTANCE))
    return mesh.render(c2w, FOV, size, light=light)


def test_triangles_match_the_ray_caster() -> None:
    asset = Toybox(3).asset(5)
    ours = render(toybox_mesh(asset), [0, 130], 48, light=True)
    theirs = render_azimuths(asset, [0, 130], 48).rgb
    assert np.abs(ours - theirs).mean() < 0.004 and theirs.std() > 0.02


def test_exported_mesh_is_read_unchanged(tmp_path: Path) -> None:
    save_glb(janus_stub.box(), tmp_path / "mesh.glb")
    mesh = read_mesh(tmp_path / "mesh.glb")
    assert not mesh.plain and np.abs(mesh.corners).max() == pytest.approx(0.4)
    colours = render(mesh, [0, 90, 180, 270])[:, 16, 16]
    np.testing.assert_allclose(colours, janus_stub.COLOURS, atol=0.02)


def test_textures_materials_and_transforms_of_files(tmp_path: Path) -> None:
    """A textured square in front, a red one behind, moved by their nodes; y up and front +z, as in glTF."""
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float) * 0.5
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = [0, 0, 255]  # upper half
    image[4:] = [0, 255, 0]
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(image))
    front = trimesh.Trimesh(square, faces, visual=trimesh.visual.TextureVisuals(uv, material=material), process=False)
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[188, 0, 0, 255])  # linear 0.5 is 188 in sRGB
    back = trimesh.Trimesh(square, faces[:, ::-1], visual=trimesh.visual.TextureVisuals(material=red), process=False)
    scene = trimesh.Scene()
    scene.add_geometry(front, transform=trimesh.transformations.translation_matrix([0, 0, 0.3]))
    scene.add_geometry(back, transform=trimesh.transformations.translation_matrix([0, 0, -0.3]))
    for name in ("a.glb", "a.obj"):
        scene.export(str(tmp_path / name))
        mesh = read_mesh(tmp_path / name)
        assert not mesh.plain and sorted(set(mesh.corners[..., 0].round(3).ravel())) == [-0.3, 0.3]
        views = render(mesh, [0, 180])
        np.testing.assert_allclose(views[0, 11, 16], [0, 0, 1], atol=0.02)
        np.testing.assert_allclose(views[0, 21, 16], [0, 1, 0], atol=0.02)
        assert views[1, 16, 16, 0] > 0.6 and views[1, 16, 16, 1:].max() < 0.02
    flat = read_mesh(tmp_path / "a.glb", up="z")
    assert sorted(set(flat.corners[..., 2].round(3).ravel())) == [-0.3, 0.3]


def test_mesh_without_colours_is_lit(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=2, radius=0.5).export(str(tmp_path / "ball.obj"))
    mesh = fit_to_ball(read_mesh(tmp_path / "ball.obj"))
    assert mesh.plain and np.linalg.norm(mesh.corners, axis=-1).max() == pytest.approx(0.8)
    lit, plain = (render(mesh, [0], light=light)[0] for light in (True, False))
    inside = np.abs(plain - DEFAULT_COLOUR).max(-1) < 1e-4
    assert plain[inside].std() < 1e-4 and lit[inside].std() > 0.02
    assert (np.abs(lit[inside] - 0.5) > 0.1).mean() > 0.8, "it differs from the background"


def test_empty_and_damaged_files_are_distinguished(tmp_path: Path) -> None:
    save_glb(janus_stub.box(), tmp_path / "cut.glb")
    cut = (tmp_path / "cut.glb").read_bytes()[:200]
    buffers = {"asset": {"version": "2.0"}, "buffers": [{"byteLength": 4, "uri": "a.bin"}]}
    packed = {"asset": {"version": "2.0"}, "extensionsRequired": ["KHR_draco_mesh_compression"]}
    damaged = {
        "cut.glb": (cut, "JSON"),
        "photo.ply": (b"\xff\xd8\xff\xe0 JFIF", "PLY"),
        "apart.gltf": (json.dumps(buffers).encode(), "a.bin"),
        "packed.gltf": (json.dumps(packed).encode(), "Draco"),
        "nothing.glb": (b"", ""),
    }
    for name, (content, value) in damaged.items():
        (tmp_path / name).write_bytes(content)
        with refused(None, tmp_path / name, value) as error:
            read_mesh(tmp_path / name)
        assert not isinstance(error.value, EmptyMesh) and "\n" not in str(error.value)
    with refused(None, tmp_path / "none.obj"):
        read_mesh(tmp_path / "none.obj")
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 2\n")
    with refused(None, tmp_path / "flat.obj", kind=EmptyMesh):
        read_mesh(tmp_path / "flat.obj")


def test_accessor_without_a_buffer_is_refused(tmp_path: Path) -> None:
    accessors = [{"componentType": 5126, "type": "VEC3", "count": 300_000_000}]
    primitive = {"attributes": {"POSITION": 0}}
    tree = {"asset": {"version": "2.0"}, "accessors": accessors, "meshes": [{"primitives": [primitive]}]}
    text = json.dumps(tree | {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]}).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON")
    (tmp_path / "a.glb").write_bytes(header + text)
    with refused("", tmp_path / "a.glb", "100,000,000", f"{MAX_TRIANGLES:,}"):
        read_mesh(tmp_path / "a.glb")


def test_unbounded_coordinates_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1e100 0 0\nv 0 1e100 0\nf 1 2 3\n")
    with refused("", tmp_path / "a.obj", "1e+100"):
        read_mesh(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1e200 0 0\nv 0 1e200 0\nf 1 2 3\n")
    with refused("", tmp_path / "a.obj", "1e+200"):
        read_mesh(tmp_path / "a.obj")
