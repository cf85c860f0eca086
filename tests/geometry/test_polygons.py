import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.support.errors import refused
from tests.support.mesh_files import SQUARE, TEXTURE, UV, assert_colours, seen, texel, uv_of
from threedgen.data.coloured_mesh import read_mesh
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.geometry.polygons import triangulate
from threedgen.run.arrays import Array

AXES = "".join(f"property float {axis}\n" for axis in "xyz")
RGB = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
QUAD, ROOF = [0, 1, 2, 3], [3, 2, 4]  # the square, and a triangle above it
CORNERS = np.vstack([SQUARE, [[0, 2, 0]]]).astype(np.float32)


def rows(values: Array) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in values.tolist())


def star(seed: int) -> tuple[Array, float]:
    """Return a star (2 N, 3) with random arms, in a random plane, and its area."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 9))
    angle, radius = np.arange(2 * count) * np.pi / count, np.tile([2.0, 0.5], count) * rng.uniform(0.8, 1.2, 2 * count)
    flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], axis=1)
    flat = np.roll(flat, rng.integers(2 * count), axis=0)
    x, y = flat[:, 0], flat[:, 1]
    return Rotation.random(rng=rng).apply(flat) + rng.normal(size=3), float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@pytest.mark.parametrize("kind", ["obj", "off"])
@pytest.mark.parametrize("seed", range(4))
def test_concave_polygons_are_filled_inside_only(tmp_path: Path, kind: str, seed: int) -> None:
    points, area = star(seed)
    n = len(points)
    texts = {
        "obj": "".join(f"v {row}\n" for row in rows(points).splitlines())
        + f"f {' '.join(map(str, range(1, n + 1)))}\n",
        "off": f"OFF\n{n} 1 0\n{rows(points)}{n} {' '.join(map(str, range(n)))}\n",
    }
    (tmp_path / f"a.{kind}").write_text(texts[kind])
    (mesh,) = read_mesh_file(tmp_path / f"a.{kind}", colours=False).submeshes
    a, b, c = mesh.vertices[mesh.faces].swapaxes(0, 1)
    areas = np.cross(b - a, c - a) / 2
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(0)
    normal /= np.linalg.norm(normal)
    assert len(areas) == n - 2 and (areas @ normal > 0).all()
    np.testing.assert_allclose((areas @ normal).sum(), area, rtol=1e-5)


def test_convex_polygons_are_fans_and_values_that_are_not_finite_do_no_harm() -> None:
    angle = np.arange(7) * 2 * np.pi / 7
    points = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    fan = triangulate(points, np.arange(7)[None])
    assert fan.tolist() == [[[0, k, k + 1] for k in range(1, 6)]]
    with pytest.MonkeyPatch.context() as patch, refused("", "7", "6"):
        patch.setattr("threedgen.geometry.polygons.MAX_CORNERS", 6)
        triangulate(points[:, [1, 0, 2]] * np.array([1, 0.3, 1, 0.3, 1, 0.3, 1])[:, None], np.arange(7)[None])
    points[3] = np.nan
    assert np.array_equal(triangulate(points, np.arange(7)[None]), fan)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("faces", [[QUAD], [QUAD, ROOF]], ids=["quad", "quad first"])
def test_binary_ply_with_polygons(tmp_path: Path, order: str, coloured: bool, faces: list[list[int]]) -> None:
    form = "little" if order == "<" else "big"
    header = f"ply\nformat binary_{form}_endian 1.0\ncomment café\nelement vertex 5\n{AXES}element face {len(faces)}\n"
    header += f"property list uchar uint vertex_indices\n{RGB if coloured else ''}end_header\n"
    colour = {4: bytes([255, 51, 0]), 3: bytes([0, 0, 255])} if coloured else {4: b"", 3: b""}
    body = b"".join(struct.pack(f"{order}B{len(f)}I", len(f), *f) + colour[len(f)] for f in faces)
    (tmp_path / "a.ply").write_bytes(header.encode() + CORNERS.astype(f"{order}f4").tobytes() + body)
    mesh = read_mesh(tmp_path / "a.ply")
    assert len(mesh.corners) == sum(len(face) - 2 for face in faces)
    assert (seen(mesh) == ([255, 51, 0, 255] if coloured else 255)).all()
    (submesh,) = read_mesh_file(tmp_path / "a.ply", colours=False).submeshes
    assert np.array_equal(submesh.vertices, CORNERS)


@pytest.mark.parametrize("faces", [[QUAD], [QUAD, ROOF]])
@pytest.mark.parametrize("names", ["st", "uv", ("texture_u", "texture_v"), "corners"])
def test_ply_texture_coordinates_of_polygons(tmp_path: Path, faces: list[list[int]], names: str | tuple[str]) -> None:
    uv = np.vstack([UV * [1, -1] + [0, 1], [[0, 0]]])
    by_corner = names == "corners"
    header = f"ply\nformat ascii 1.0\ncomment TextureFile tex.png\nelement vertex 5\n{AXES}"
    header += "" if by_corner else "".join(f"property float {name}\n" for name in names)
    header += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    header += "property list uchar float texcoord\n" if by_corner else ""
    lines = [f"{len(face)} {' '.join(map(str, face))}" for face in faces]
    if by_corner:
        texts = (" ".join(map(str, uv[face].ravel())) for face in faces)
        lines = [f"{line} {2 * len(face)} {text}" for line, face, text in zip(lines, faces, texts, strict=True)]
    points = rows(CORNERS if by_corner else np.column_stack([CORNERS, uv]))
    (tmp_path / "a.ply").write_text(header + "end_header\n" + points + "\n".join(lines))
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    assert_colours(tmp_path / "a.ply", texel(uv_of()))


@pytest.mark.parametrize(("line", "kind"), [("property float f_dc_0", "Gaussians"), ("property float a", "points")])
def test_ply_without_faces_names_its_content(tmp_path: Path, line: str, kind: str) -> None:
    header = f"ply\nformat ascii 1.0\nelement vertex 2\n{AXES}{line}\nend_header\n"
    (tmp_path / "a.ply").write_text(header + "0 0 0 1\n1 1 1 1\n")
    with refused("mesh", tmp_path / "a.ply", kind):
        read_mesh_file(tmp_path / "a.ply", "mesh")


@pytest.mark.parametrize(
    ("head", "of_vertex", "of_face", "colour"),
    [
        ("OFF ", "", " 7", 255),  # the number of a colour in a table that is not in the file
        ("coff ", " 255 51 0", "", [255, 51, 0]),
        ("COFF\r\n", " 1.0 0.2 0.0 1.0", "", [255, 51, 0]),
        ("NCOFF\n", " 255 51 0 255 0 0 1", "", [255, 51, 0]),
        ("CNOFF\n", " 0 0 1 255 51 0 255", "", [255, 51, 0]),
        ("OFF\n# from a program\n\n", "", " 1.0 0.2 0.0 0.5", [255, 51, 0]),
        ("NOFF\n", " 0 0 1", " 255 51 0 # red", [255, 51, 0]),
        ("OFF BINARY\n", "", "", None),
    ],
)
def test_off_colours(tmp_path: Path, head: str, of_vertex: str, of_face: str, colour: list[int] | int | None) -> None:
    points = "".join(f"{row}{of_vertex}\n" for row in rows(CORNERS).splitlines())
    text = f"{head}5 2 0\n{points}3 3 2 4{of_face}\n4 0 1 2 3{of_face}\n"
    (tmp_path / "a.off").write_text(text)
    if colour is None:
        with refused("", tmp_path / "a.off"):
            read_mesh_file(tmp_path / "a.off")
        return
    mesh = read_mesh(tmp_path / "a.off")
    assert len(mesh.corners) == 3 and mesh.plain == (colour == 255)
    assert (seen(mesh)[:, :3] == colour).all()


def test_triangles_of_all_polygons_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length alone is below the limit."""
    monkeypatch.setattr("threedgen.geometry.submesh.MAX_TRIANGLES", 4)
    faces = "4 0 1 2 3\n4 0 1 2 3\n5 0 1 2 3 4\n"
    (tmp_path / "a.off").write_text(f"OFF\n5 3 0\n{rows(CORNERS)}{faces}")
    with refused("", "7", "4"):
        read_mesh_file(tmp_path / "a.off", "")
