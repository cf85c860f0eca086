from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.errors import refused
from tests.support.mesh_files import SPOTS, TEXTURE, assert_colours, seen, texel, uv_of, write_obj
from threedgen.data.coloured_mesh import read_mesh
from threedgen.geometry.mesh_file import read_mesh_file


@pytest.mark.parametrize(
    ("line", "scale", "offset", "clamp"),
    [
        ("map_Kd -s 2 2 1 name with space.png", 2, 0, False),
        ("map_Kd -o 0.5 0 name with space.png", 1, (0.5, 0), False),
        ("map_Kd -clamp on -s 3 3 name with space.png", 3, 0, True),
        ("map_Kd -blendu on -blendv off -cc off name with space.png", 1, 0, False),
        ("map_Kd -imfchan l -t 0 0 0 name with space.png", 1, 0, False),
        ("\tmap_kd   -S 1e0 1. .1e1   name with space.png  ", 1, 0, False),
        ("map_Ka name with space.png", 1, 0, False),
        ("map_Kd name%20with%20space.png", 1, 0, False),
        ("map_Kd\nmap_Ka name with space.png\nmap_d ", 1, 0, False),
        ("map_Kd Name With Space.PNG\nmap_Ka other.png", 1, 0, False),
    ],
)
def test_texture_options(tmp_path: Path, line: str, scale: float, offset: float, clamp: bool) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "name with space.png")
    up = uv_of() * (1, -1) + (0, 1)
    moved = up * scale + offset
    inside = moved.clip(0, 1) if clamp else moved % 1
    assert_colours(write_obj(tmp_path, line), texel(inside * (1, -1) + (0, 1)))


ORANGE = [255, 51, 0]


@pytest.mark.parametrize(
    ("colour", "mtl", "expected"),
    [
        ([1, 0.2, 0], None, ORANGE),
        ([255, 51, 0], "map_Kd gone.png", ORANGE),
        ([1, 1, 0.2, 0], "", ORANGE),  # after a weight
        ([1, 255, 51, 0], "", ORANGE),
        ([1, 0.2, 0, 1], "", [51, 0, 255]),
        ([0.5, 1.00001, 0.2, -1e-9], "", ORANGE),  # inexact
        ([255, 51, 0, 255], "", ORANGE),  # before alpha
        ([0.2, 1, 0, 1], "", [51, 255, 0]),
        ([1, 0, 0, 1], "", [255, 0, 0]),
    ],
)
def test_vertex_colours(tmp_path: Path, colour: list[float], mtl: str | None, expected: list[int]) -> None:
    mesh = read_mesh(write_obj(tmp_path, mtl, colours=np.tile(colour, (4, 1))))
    assert (seen(mesh) == [*expected, 255]).all() and not mesh.flat and not mesh.plain
    missing = {None: "square.mtl", "": None, "map_Kd gone.png": "gone.png"}[mtl]
    assert [missing in note for note in mesh.notes] == ([True] if missing else [])


@pytest.mark.parametrize(
    ("lines", "alpha"),
    [
        ("Tr 0.75", 0.25),
        ("d 0.25\nTr 0.25", 0.25),
        ("Tr 1\nd 1", 1),
        ("d -halo 0.5", 0.5),
        ("map_d half.png\nmap_Kd tex.png", 100 / 255),
        ("d 0\nmap_d half.png\nmap_Kd tex.png", 100 / 255),
        ("d 0\nmap_d gone.png\nmap_Kd tex.png", 1),
        ("map_d rgba.png\nmap_Kd tex.png\nd 0.5", 25 / 255),
        ("map_d tex.png\nmap_Kd tex.png", 1),
    ],
)
def test_opacity(tmp_path: Path, lines: str, alpha: float) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    Image.new("L", (4, 4), 100).save(tmp_path / "half.png")
    Image.new("RGBA", (4, 4), (255, 255, 255, 50)).save(tmp_path / "rgba.png")
    expected = texel(uv_of()) if "map_Kd" in lines else np.full((len(SPOTS), 3), 204)
    assert_colours(write_obj(tmp_path, lines), expected, round(255 * alpha))


@pytest.mark.parametrize("suffix", ["tga", "jpg", "webp", "dds"])
def test_texture_formats(tmp_path: Path, suffix: str) -> None:
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(TEXTURE).save(tmp_path / f"tex.{suffix}", **options)
    found = seen(read_mesh(write_obj(tmp_path, f"map_Kd tex.{suffix}")))[:, :3]
    known = texel(uv_of())
    assert np.abs(found - known)[known[:, 0] >= 0].max() <= (6 if suffix in ("jpg", "webp") else 1)


@pytest.mark.parametrize(
    "faces",
    [
        "f 1/1/1 2/2/1 3/3/1 4/4/1",
        "f -4/-4 -3/-3 -2/-2 -1/-1",
        "f 1/1 2/2 \\\n3/3 4/4",
        "f\t1/1  2/2\t3/3\nf 4/4 1/1 3/3 # last",
        "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 1 2 1",
        "f 1/1 2/2 3/3 4/4\nv 5 5 5\nvt 0 0\nf 1/1 2/2 3/3",
        "f 1/1/ 2/2/ 3/3/ 4/4/",
        "f 1/1 2/2 3/3 3/3 4/4",
        "V 5 5 5 # unused\nVT 0 0 # unused\nF 1/1 2/2 3/3 4/4",
        "v 5 5 5 1.0\nf 1/1 2/2 3/3 4/4",
    ],
)
def test_faces(tmp_path: Path, faces: str) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    path = write_obj(tmp_path, "map_Kd tex.png")
    text = path.read_text().partition("f ")[0] + "vn 0 0 1\n" + faces + "\n"
    path.write_bytes(text.replace("\n", "\r\n").rstrip().encode())
    assert_colours(path, texel(uv_of()))
    assert sum(len(submesh.uv) for submesh in read_mesh_file(path).submeshes if submesh.uv is not None) >= 4


def test_materials_of_several_files_and_parts(tmp_path: Path) -> None:
    (tmp_path / "my one.mtl").write_text("newmtl red paint\nKd 1 0 0\n")
    (tmp_path / "two.mtl").write_text("newmtl b\nKd 0 0 1\n")
    (tmp_path / "three.mtl").write_bytes("newmtl grün\nKd 0.5\n".encode("cp1252"))
    text = "mtllib my one.mtl\nmtllib two.mtl three.mtl\n"
    for k, name in enumerate(("red paint", "b", "grün")):
        text += "".join(f"v {k} {y} {z}\n" for y, z in ((0, 0), (1, 0), (1, 1)))
        text += f"usemtl {name}\nf -3 -2 -1\n"
    (tmp_path / "a.obj").write_text(text)
    mesh = read_mesh(tmp_path / "a.obj", up="z")
    found = {float(part.corners[0, 0, 0]): part.values[0, 0].tolist() for part in mesh.parts}
    assert found == {0: [1, 0, 0], 1: [0, 0, 1], 2: [0.5, 0.5, 0.5]} and mesh.flat and not mesh.plain


def test_lines_of_different_lengths_are_read_in_several_parts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("threedgen.geometry.obj_file.RAGGED", 2)
    lines = ["v 0 0 0", "  V\t1 0 0 # a comment", "#v 9 9 9", "", "v 1 \\", "1 0 1", "f -3 -2 -1", "v 0 1 0", "f 1 3 4"]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    corners = [part.vertices[part.faces] for part in read_mesh_file(tmp_path / "a.obj", colours=False).submeshes]
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    assert np.concatenate(corners).tolist() == square[[[0, 1, 2], [0, 2, 3]]].tolist()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_weights_comments_and_missing_materials(tmp_path: Path, encoding: str) -> None:
    """A fourth number of a vertex is a weight, and no colour."""
    text = "usemtl m # 1\nv 0 0 0 1\nv 1 0 0 1\nv 0 1 0 1\nf 1 2 3\nmtllib c.mtl # last\n"
    (tmp_path / "b.obj").write_text(text, encoding)
    (tmp_path / "c.mtl").write_text("newmtl m # 1\nKd 0 1 0 # green\n", encoding)
    assert read_mesh(tmp_path / "b.obj").parts[0].values[0].tolist() == [[0, 1, 0]] * 3
    (tmp_path / "c.mtl").write_text("newmtl other\n", encoding)
    assert "m # 1" in read_mesh(tmp_path / "b.obj").notes[0]


def test_missing_vertices_and_library_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n")
    assert "mtllib" in read_mesh(tmp_path / "a.obj").notes[0]
    for face in ("f 1 2 4", "f 1 2 0", "f 1 2 -4"):
        (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\n{face}\n")
        with refused(None, tmp_path / "a.obj", "vertex", "3 vertices"):
            read_mesh(tmp_path / "a.obj")


@pytest.mark.parametrize("rest", ["", "\n#MRGB ff0000zz"])
def test_polypaint(tmp_path: Path, rest: str) -> None:
    """ZBrush writes the colours of the vertices in comments, with a mask before each colour."""
    vertices, colours = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0", "#MRGB ffff330000ff3300\n#MRGB ffFF330080ff3300"
    (tmp_path / "a.obj").write_text(f"{vertices}\n{colours}{rest}\nf 1 2 3 4\n")
    mesh = read_mesh(tmp_path / "a.obj")
    assert (seen(mesh) == [255, 51, 0, 255]).all() and not mesh.plain
    (tmp_path / "a.obj").write_text((tmp_path / "a.obj").read_text().replace(" 0\n", " 0 0 0 1\n"))
    assert (seen(read_mesh(tmp_path / "a.obj")) == [0, 0, 255, 255]).all(), "colours beside the coordinates come first"


@pytest.mark.parametrize(
    ("lines", "colour"),
    [
        ("Kd 0 0 0\nKe 1 0.2 0", [255, 51, 0]),
        ("Kd 0 0 0\nKe 1 1 1\nmap_Ke tex.png", None),
        ("Kd 0 0 0\nmap_Kd tex.png\nmap_Ke black.png", None),
        ("Kd 1 0.2 0\nKe 1 1 1\nmap_Ke tex.png", [255, 51, 0]),
    ],
)
def test_light_is_the_colour_of_materials_without_another(tmp_path: Path, lines: str, colour: list[int] | None) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    expected = texel(uv_of()) if colour is None else np.tile(colour, (len(SPOTS), 1))
    assert_colours(write_obj(tmp_path, lines), expected)


def test_options_of_any_length_are_read_in_linear_time(tmp_path: Path) -> None:
    path = write_obj(tmp_path, f"map_Kd -s {10**6 * '1'}x a.png\nmap_d {'-s 1 ' * 200_000} b.png")
    assert len(read_mesh(path).notes) == 2
