import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.support import box_room, command
from tests.support.errors import refused
from tests.support.nose_box import config, nose_box, write_mesh
from tests.support.posed_photos import edit_transforms, write_colmap, write_transforms
from tests.support.task_server import write_config
from threedgen.data.posed.options import PoseConvention
from threedgen.data.posed.photos import open_photos
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.systems.sample.mesh import SourceMesh, six_sides
from threedgen.systems.texture.mesh_views import MeshViews, check_sides, place_photos
from threedgen.systems.texture.task import read_mesh

NOSE_BOX = SourceMesh(np.asarray(nose_box().vertices, np.float32), np.asarray(nose_box().faces))


def take(cameras: Cameras, background: float = 0.5) -> tuple[Views, np.ndarray]:
    """Return photos of the nose box, with masks (N, H, W)."""
    images = box_room.truth(NOSE_BOX, cameras)
    masks = rasterise_views(NOSE_BOX.vertices, NOSE_BOX.faces, cameras).mask
    images = np.where(masks[..., None], images, np.float32(background))
    return Views(torch.from_numpy(images), cameras), masks


def around(count: int = 6) -> Cameras:
    """Return wide cameras around the origin with an off-centre principal point."""
    at = orbit(count, 0.5, 2.0, 0.7, 48, 64)
    K = at.K.clone()
    K[:, 0, 2] += 5
    return Cameras(at.c2w, Projection(K), 48, 64)


def photos_of(folder: Path, opaque: bool, turn: np.ndarray | None = None, colmap: bool = False) -> Any:
    """Write a.glb and photos of it with poses in its coordinates, turned by `turn` (4, 4). Return mesh and photos."""
    source, mesh, _ = read_mesh(config(write_mesh(folder / "a.glb")))
    views, masks = take(around())
    c2w = torch.from_numpy(np.eye(4) if turn is None else turn) @ source.frame.poses_to_file(views.cameras.c2w.double())
    views = replace(views, cameras=replace(views.cameras, c2w=c2w))
    scene = folder / "scene"
    write_colmap(scene, views, binary=True) if colmap else write_transforms(scene, views)
    if opaque:  # with a background that has no uniform colour
        noise = np.random.default_rng(0).random((48, 64, 3))
    for path, mask in zip(sorted((scene / "images").iterdir()), masks, strict=True):
        pixels = np.asarray(Image.open(path))
        if opaque:
            Image.fromarray(np.where(mask[..., None], pixels, (255 * noise).astype(np.uint8))).save(path)
        else:
            Image.fromarray(np.dstack([pixels, 255 * mask.astype(np.uint8)])).save(path)
    return source, mesh, scene


def test_photos_are_projected(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos_of(tmp_path, opaque=True, colmap=True)
    write_config(Path("views.yaml"), {"task": "texture", "threads": 1, "texture": 128, "rig": {"size": 64}})
    code, _, err = command.ask(capsys, "--config", "views.yaml", "mesh=a.glb", "views=scene", "out=run")
    assert code == 0, err
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["psnr_of_views"] > 25 and summary["texels_seen"] > 0.6 and not summary.get("notes")
    assert Path("run", "views.png").is_file()


Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # y-up world -> z-up world
SHIFTED = np.eye(4)[[2, 0, 1, 3]]  # rows z, x, y


@pytest.mark.parametrize(("opaque", "turn"), [(False, Z_UP), (True, SHIFTED)])
def test_world_of_the_photos_is_turned_to_that_of_the_mesh(tmp_path: Path, opaque: bool, turn: np.ndarray) -> None:
    source, mesh, scene = photos_of(tmp_path, opaque, turn)
    found, notes = place_photos(open_photos(scene, 64), mesh, source.frame)
    assert torch.allclose(found.cameras.c2w, around().c2w, atol=1e-4) and len(notes) == 1
    away = np.array([[0.0, 1, 0, 5], [0, 0, 1, -3], [1, 0, 0, 0], [0, 0, 0, 1]])
    (tmp_path / "b").mkdir()
    moved = photos_of(tmp_path / "b", opaque, away)[2]
    edit_transforms(moved, lambda tree: tree.update(applied_transform=away[:3].tolist()))
    found, notes = place_photos(open_photos(moved, 64), mesh, source.frame)
    assert torch.allclose(found.cameras.c2w, around().c2w, atol=1e-4) and len(notes) == 1


def test_photos_in_an_arbitrary_world_are_noted(tmp_path: Path) -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0.5, 0.4, -0.6]).as_matrix()
    source, mesh, scene = photos_of(tmp_path, True, turn)
    _, notes = place_photos(open_photos(scene, 64), mesh, source.frame)
    assert any("after.png" in note for note in notes)


@pytest.mark.parametrize("opaque", [False, True])
def test_photos_with_other_poses_are_refused(tmp_path: Path, opaque: bool) -> None:
    source, mesh, scene = photos_of(tmp_path, opaque)
    conventions: tuple[PoseConvention, ...] = ("c2w-opencv", "w2c-opengl")
    for declared in conventions:
        with refused(None, "c2w-opengl", declared):
            place_photos(open_photos(scene, 64, declared), mesh, source.frame)

    def move(tree: Any) -> None:
        for frame in tree["frames"]:
            frame["transform_matrix"][1][3] += 50

    edit_transforms(scene, move)
    with refused("views"):
        place_photos(open_photos(scene, 64), mesh, source.frame)


@pytest.mark.parametrize("plain", [False, True])
def test_turned_sides_are_refused_with_the_turn_that_fits(tmp_path: Path, plain: bool) -> None:
    """The outlines are from alpha or from a plain background."""
    write_mesh(tmp_path / "a.glb")
    views, masks = take(six_sides(64), background=1.0)
    sides = MeshViews(views.images.numpy(), six_sides(64), None if plain else masks.astype(np.float32))
    source, mesh, _ = read_mesh(config(tmp_path / "a.glb"))
    check_sides(sides, mesh, source.frame)
    for front, up in (("+x", "auto"), ("-z", "auto"), ("+z", "-x")):
        turned, other, _ = read_mesh(config(tmp_path / "a.glb", front=front, up=up))
        with refused("views", "front=+z", *(["up=+y"] if up != "auto" else [])):
            check_sides(sides, other, turned.frame)
    source, long, _ = read_mesh(config(write_mesh(tmp_path / "b.glb", trimesh.creation.box((0.9, 0.1, 0.1)))))
    with refused("views", "0.8"):
        check_sides(sides, long, source.frame)
    masks = np.ones_like(masks, np.float32)
    check_sides(MeshViews(np.random.default_rng(0).random((6, 64, 64, 3)), six_sides(64), masks), long, source.frame)
