"""Files that mesh files name: where they are searched, and what is never opened."""

import os
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from tests.fuzz.mutations import PLACES
from tests.support.errors import refused
from tests.support.mesh_files import PLY, TEXTURE, Glb, assert_colours, seen, texel, uv_of, write_obj
from threedgen.data.coloured_mesh import EmptyMesh, read_mesh
from threedgen.geometry.images import png
from threedgen.geometry.mesh_file import read_mesh_file


@pytest.mark.parametrize("name", ["my chair", "böse äpfel", "100% wood", "a#b", "日本", "a%20b"])
def test_percent_encoded_names(tmp_path: Path, name: str) -> None:
    for encode in (quote, str):  # exporters that forget the encoding write the name as it is
        glb = Glb()
        Image.fromarray(TEXTURE).save(tmp_path / f"{name}.png")
        glb.square(glb.material(glb.texture(uri=encode(f"{name}.png"))))
        (tmp_path / f"{name}.bin").write_bytes(glb.data)
        assert_colours(glb.write(tmp_path / "a.gltf", encode(f"{name}.bin")), texel(uv_of()))


@pytest.mark.parametrize(
    ("reference", "folder"),
    [
        ("maps\\wood.png", "maps"),
        ("MAPS/Wood.PNG", "maps"),
        ("./maps/wood.png", ""),
        ("C:\\Users\\me\\model\\wood.png", "Textures"),
        ("C:wood.png", ""),
        ("/home/me/model/wood.png", "../textures"),
        ("\\\\server\\share\\wood.png", ""),
        ("../other/wood.png", ""),
        ("file:///D:/me/wood.png", ""),
        ('"wood.png"', ""),
    ],
)
def test_texture_paths(tmp_path: Path, reference: str, folder: str) -> None:
    place = tmp_path / "mesh" / folder
    (tmp_path / "mesh").mkdir()
    place.mkdir(exist_ok=True)
    Image.fromarray(TEXTURE).save(place / "wood.png")
    assert_colours(write_obj(tmp_path / "mesh", f"map_Kd {reference}"), texel(uv_of()))


@pytest.mark.parametrize("seed", range(4))
def test_paths_out_of_the_folder_are_never_opened(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "a" / "mesh"
    folder.mkdir(parents=True)
    secret = tmp_path / ("a" if seed % 2 else ".") / "secret.png"
    Image.fromarray(TEXTURE).save(secret)
    references = [str(secret), os.path.relpath(secret, folder), f"mesh/../../{secret.name}", secret.as_uri()]
    path = write_obj(folder, f"map_Kd {references[seed]}")
    mesh = read_mesh(path)
    assert "secret.png" in mesh.notes[0] and str(folder) in mesh.notes[0]
    assert (seen(mesh) == [204, 204, 204, 255]).all() and not mesh.plain
    glb = Glb()
    glb.square(glb.material(glb.texture(uri=references[seed])))
    secret.with_suffix(".bin").write_bytes(glb.data)
    with refused("", "secret.bin"):
        read_mesh(glb.write(folder / "a.gltf", references[seed].replace(".png", ".bin")))


HUGE, LINKED = "20 GB of zeros", "a link to another folder"


def _bad(path: Path, place: str) -> str:
    """Write something that is never read; return its name."""
    path.write_bytes(b"" if place == HUGE else png(TEXTURE))
    with pytest.MonkeyPatch.context() as patch:
        if place == LINKED:  # the other folder is deleted after the test
            patch.setattr(tempfile, "tempdir", str(path.parent.parent))
        PLACES[place](path)
    return path.name


@pytest.mark.parametrize("place", PLACES)
def test_only_ordinary_files_of_the_folder_are_read(tmp_path: Path, place: str) -> None:
    folders = [tmp_path / str(k) / "mesh" for k in range(6)]
    for folder in folders:
        folder.mkdir(parents=True)
    glb = Glb()
    glb.square(glb.material(glb.texture(uri=_bad(folders[0] / "a.png", place))))
    mtl = write_obj(folders[2], None)
    (folders[3] / "a.ply").write_text(PLY.format(_bad(folders[3] / "d.png", place)))
    named = {
        "a.png": glb.write(folders[0] / "a.gltf"),
        "b.png": write_obj(folders[1], f"map_Kd {_bad(folders[1] / 'b.png', place)}"),
        "square.mtl": mtl,
        "d.png": folders[3] / "a.ply",
    }
    _bad(mtl.with_name("square.mtl"), place)
    for name, path in named.items():
        notes = read_mesh(path).notes
        assert len(notes) == 1 and name in notes[0]
    glb = Glb()
    glb.square()
    path = glb.write(folders[4] / "a.gltf", _bad(folders[4] / "a.bin", place))
    if place == HUGE:  # only the part that is needed is read: zeros
        with refused("", path, kind=EmptyMesh):
            read_mesh(path)
    else:
        with refused("", path, "a.bin"):
            read_mesh(path)
    if place != LINKED:  # which is allowed for the file that the user names
        with refused("mesh", folders[5] / _bad(folders[5] / "a.obj", place)):
            read_mesh_file(folders[5] / "a.obj", "mesh")


@pytest.mark.parametrize("folder", ["a/b", "textures"])
def test_textures_are_searched_beside_the_mtl_file(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "other").mkdir()
    path = write_obj(tmp_path, "map_Kd wood.png", f"mtllib {folder}/square.mtl\n")
    (tmp_path / "square.mtl").rename(tmp_path / folder / "square.mtl")
    Image.fromarray(TEXTURE).save(tmp_path / folder / "wood.png")
    Image.fromarray(255 - TEXTURE).save(tmp_path / "wood.png")
    assert_colours(path, texel(uv_of()))


def test_ply_texture_is_a_side_file(tmp_path: Path) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    path = tmp_path / "a.ply"
    path.write_text(PLY.format("C:\\me\\Tex.png"))
    assert_colours(path, texel(uv_of()))
    path.write_text(PLY.format("tex.png").replace("float t\n", "float w\n"))
    assert len(read_mesh(path).notes) == 1, "it has no texture coordinates"
    path.write_text(PLY.format("gone.png"))
    assert "gone.png" in read_mesh(path).notes[0]
