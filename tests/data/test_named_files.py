"""Names in files lead to no file outside the folder; links do. `test_side_files.py` tests the mesh readers."""

import os
import shutil
from collections.abc import Callable
from math import radians
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.asset_folder import write_shard
from tests.support.errors import refused
from tests.support.photographs import photographs
from tests.support.posed_photos import edit_transforms, write_colmap, write_transforms
from threedgen.config import ConfigError
from threedgen.data.assets.shards import Shards
from threedgen.data.matterport import CAPTIONS, FACES, MatterportPanoramas
from threedgen.data.options import MatterportConfig
from threedgen.data.posed.reader import read_posed
from threedgen.evaluation.views.scenes import FolderScenes
from threedgen.geometry.cameras_file import CAMERAS_FILE, write_cameras
from threedgen.geometry.panorama import cameras, ring

PIXELS = np.full((16, 16, 3), 128, np.uint8)


def write_scene(folder: Path, name: str | None) -> Path:
    for k in range(4):
        Image.fromarray(PIXELS).save(folder / f"{k}.png")
    at = cameras(ring(4), radians(90), 16, 16)
    write_cameras(folder / CAMERAS_FILE, at, ["0.png" if name is None else name, "1.png", "2.png", "3.png"], [""] * 4)
    return folder / "0.png"


def write_panoramas(folder: Path, name: str | None) -> Path:
    paths = [f"one/{FACES}/skybox_skybox{k}_sami.jpg" for k in range(6)]
    (folder / paths[0]).parent.mkdir(parents=True)
    for path in paths:
        Image.fromarray(PIXELS).save(folder / path)
    (folder / "one" / CAPTIONS).mkdir()
    for yaw in range(0, 360, 45):
        (folder / "one" / CAPTIONS / f"skybox_{yaw}.txt").write_text("a room")
    np.save(folder / "test.npy", np.array([[paths[0] if name is None else name, *paths[1:]]]))
    return folder / paths[0]


def write_photos(folder: Path, name: str | None) -> Path:
    write_transforms(folder, photographs(3))
    if name is not None:
        edit_transforms(folder, lambda tree: tree["frames"][0].update(file_path=name))
    return folder / "images" / "000.png"


def write_model(folder: Path, name: str | None) -> Path:
    write_colmap(folder, photographs(3), binary=False)
    file = folder / "sparse" / "0" / "images.txt"
    file.write_text(file.read_text().replace("000.png", "000.png" if name is None else name))
    return folder / "images" / "000.png"


def read_photos(folder: Path) -> None:
    if missing := read_posed(folder).missing:
        raise ConfigError(f"{missing} are missing")


def read_panoramas(folder: Path) -> None:
    MatterportPanoramas(MatterportConfig(path=str(folder), size=16), 0, "test").scene(0)


READERS: dict[str, tuple[Callable[[Path, str | None], Path], Callable[[Path], object]]] = {
    "shards": (write_shard, lambda folder: [Shards(folder).metadata(entry) for entry in Shards(folder).entries]),
    "scenes": (write_scene, lambda folder: FolderScenes(folder, depth=False).scene(0)),
    "panoramas": (write_panoramas, read_panoramas),
    "transforms.json": (write_photos, read_photos),
    "COLMAP": (write_model, read_photos),
}
"""Reader -> functions: write a folder that calls a file by a name (None: a valid one) and return its path; read."""


@pytest.mark.parametrize("reader", READERS)
def test_files_outside_the_folder_are_not_opened(tmp_path: Path, reader: str) -> None:
    write, read = READERS[reader]
    (tmp_path / "other").mkdir()
    folder = tmp_path / "a" / "b" / "c" / "d" / "data"
    folder.mkdir(parents=True)
    file = write(folder, None)
    read(folder)
    outside = tmp_path / "other" / f"secret{file.suffix}"
    shutil.copy(file, outside)
    file.unlink()
    file.symlink_to(outside)
    read(folder)  # users link files of large datasets
    for name in (str(outside), os.path.relpath(outside, folder), f"x/../{os.path.relpath(outside, folder)}", "\0"):
        shutil.rmtree(folder)
        folder.mkdir()
        write(folder, name)
        with refused() as caught:
            read(folder)
        assert str(caught.value).isprintable() or "missing" in str(caught.value)


@pytest.mark.parametrize("link", ["sparse", "sparse/0"])
def test_photos_beside_a_linked_model_are_read(tmp_path: Path, link: str) -> None:
    for name in ("scene", "other"):
        write_colmap(tmp_path / name, photographs(3), binary=True)
    shutil.rmtree(tmp_path / "scene" / link)
    (tmp_path / "scene" / link).symlink_to(tmp_path / "other" / link)
    assert {file.parent for file in read_posed(tmp_path / "scene").files} == {tmp_path / "scene" / "images"}
    (tmp_path / "scene" / "images").rename(tmp_path / "elsewhere")
    assert {file.parent for file in read_posed(tmp_path / "scene").files} == {tmp_path / "other" / "images"}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("place", ["images", "../images", "/somewhere/else/images"])
def test_photos_are_found_in_the_folder_or_one_level_up(
    tmp_path: Path, monkeypatch, place: str, absolute: bool
) -> None:
    folder = tmp_path / "data" / "scene"
    folder.mkdir(parents=True)
    edit_transforms(
        write_transforms(folder, photographs(3)),
        lambda tree: [f.update(file_path=f["file_path"].replace("images", place)) for f in tree["frames"]],
    )
    images = folder / "images"
    if place == "../images":
        images = images.rename(folder.parent / "images")
    monkeypatch.chdir(folder)
    found = read_posed(folder if absolute else Path("."))
    assert [file.resolve() for file in found.files] == [images / f"{k:03d}.png" for k in range(3)]
    assert torch.isfinite(torch.from_numpy(found.matrices)).all()
