"""Readers of ScanNet and Matterport3D: toy rooms in their layouts, against direct renders; unusable files."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.data.conftest import damage, toy_rooms_config
from tests.support.errors import refused
from threedgen.data import scannet
from threedgen.data.matterport import PREFIX, MatterportPanoramas
from threedgen.data.options import MatterportConfig, ScanNetConfig
from threedgen.data.scannet import build
from threedgen.data.scene_views import WalkScenes
from threedgen.evaluation.metrics.overlap import depth_overlap, panorama_overlap
from threedgen.geometry.images import psnr
from threedgen.geometry.warp import to_opencv
from threedgen.toybox.data import make_rooms
from threedgen.toybox.data.room_scenes import RoomPanoramas, room_walks
from threedgen.toybox.options import RoomPanoramasConfig, RoomPathsConfig
from threedgen.toybox.world.furnishing import HALF_WIDTH, HEIGHT

SCENE, PANORAMA = "test/walk-test-00000", "mp3d_skybox/panorama-test-00000"


@pytest.fixture(autouse=True)
def few_key_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scannet, "MIN_KEYS", 4)


def reader(root: Path, split: str = "test", **more: object) -> WalkScenes:
    values = {"path": str(root), "height": 36, "width": 48, "views": 4, **more}
    return build(ScanNetConfig.model_validate(values), 0, split)


def panoramas(root: Path, split: str = "test", **more: object) -> MatterportPanoramas:
    return MatterportPanoramas(MatterportConfig.model_validate({"path": str(root), "size": 48, **more}), 0, split)


def test_walks_equal_direct_renders(toy_rooms: Path) -> None:
    source = reader(toy_rooms)
    walk = room_walks(RoomPathsConfig(count=1, height=36, width=48), 0, "test", 70)[0]
    scene = source.scene(0)
    direct = walk.views(walk.keys[:4])
    assert list(source.walks[0].keys) == list(walk.keys) and list(source.walks[0].frames) == list(range(70))
    assert scene.depth is not None and direct.depth is not None
    assert psnr(direct.views.images.numpy(), scene.views.images.numpy()) > 34
    assert (scene.depth - direct.depth).abs().max() < 6e-4 and scene.captions == direct.captions
    assert torch.allclose(scene.views.cameras.K, direct.views.cameras.K, atol=1e-4)
    assert torch.allclose(scene.views.cameras.c2w, direct.views.cameras.c2w, atol=1e-5)
    K, c2w = to_opencv(scene.views.cameras)
    assert min(depth_overlap(scene.views.images, scene.depth, K, c2w)) > 18


def test_panoramas_equal_direct_renders(toy_rooms: Path) -> None:
    scene = panoramas(toy_rooms).scene(0)
    direct = RoomPanoramas(RoomPanoramasConfig(size=48), 0, "test").scene(0)
    assert psnr(direct.views.images.numpy(), scene.views.images.numpy()) > 26
    K, c2w = to_opencv(scene.views.cameras)
    assert np.allclose(c2w[:, :3, :3], to_opencv(direct.views.cameras)[1][:, :3, :3], atol=1e-6)
    assert min(panorama_overlap(scene.views.images, K, c2w[:, :3, :3])) > 20
    source = RoomPanoramas(RoomPanoramasConfig(), 0, "test")
    assert scene.captions == tuple(f"This is one view of a scene. {text}" for text in source.directions(0))


def test_training_views_start_at_random_yaws_with_the_nearest_caption(toy_rooms: Path) -> None:
    train = panoramas(toy_rooms, "train", count=30, size=16)
    first = [train.first_yaw(index) for index in range(30)]
    assert len(train) == 30 and len(set(first)) > 20 and first == [train.first_yaw(index) for index in range(30)]
    texts = RoomPanoramas(RoomPanoramasConfig(), 0, "train").directions(0)
    index = next(k for k, yaw in enumerate(first) if yaw > 340)
    assert train.scene(index).captions == tuple(PREFIX + text for text in texts)  # yaws above 340 are nearest to 0
    index = next(k for k, yaw in enumerate(first) if 70 < yaw < 110)
    assert train.scene(index).captions == tuple(PREFIX + text for text in np.roll(texts, -2))
    assert panoramas(toy_rooms / "mp3d_skybox").describe() != panoramas(toy_rooms, size=16).describe()


def test_names_with_leading_zeros_are_read(toy_rooms: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_rooms / "scannet" / SCENE, tmp_path / SCENE)
    for path in (path for part in ("color", "depth", "pose", "prompt") for path in (tmp_path / SCENE / part).iterdir()):
        path.rename(path.with_stem(path.stem.zfill(6)))
    found, expected = reader(tmp_path).scene(0), reader(toy_rooms).scene(0)
    assert torch.equal(found.views.images, expected.views.images) and found.captions == expected.captions
    assert torch.equal(found.depth, expected.depth) and torch.equal(found.views.cameras.c2w, expected.views.cameras.c2w)
    assert reader(tmp_path).walks[0].has_pose(20)


def test_entries_of_both_splits(toy_rooms: Path) -> None:
    test = reader(toy_rooms)
    assert len(test) == len(test.walks[0].keys) // 4
    train = reader(toy_rooms, "train", between=0.5, count=40, height=9, width=12)
    assert {train.scene(index).condition_views for index in range(20)} == {(), (0, 3)} and len(train) == 40
    assert torch.equal(train.scene(7).views.images, train.scene(7).views.images)
    many = reader(toy_rooms, "train", views=30, count=2, height=9, width=12, between=0.0)
    assert len(many.scene(0)) == 30, "more views than key frames"


def test_room_mesh_has_the_size_of_the_room(toy_rooms: Path) -> None:
    (mesh,) = trimesh.load(toy_rooms / "scannet" / SCENE / "room.glb", process=False).geometry.values()
    low, high = mesh.bounds  # (y, z, x)
    assert np.allclose(high - low, [2 * HALF_WIDTH, HEIGHT, 2 * HALF_WIDTH], atol=0.25)
    assert abs(low[1]) < 0.02 and mesh.visual.vertex_colors.shape[1] == 4


def inverse_poses(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text(make_rooms.rows(np.linalg.inv(np.loadtxt(path))))


def no_depth(path: Path) -> None:
    Image.fromarray(np.zeros((36, 48), np.uint16)).save(path)


KEYS, K = "key_frame_0.6.txt", "intrinsic/intrinsic_depth.txt"
FILES = ("color/0.jpg", "depth/0.png", "pose/0.txt", "valid_frames.npy")


def npy(kind: str, count: int) -> bytes:
    """Return the bytes of a .npy file of `count` values of the type `kind` that has no data."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": (count,)})
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        *((file, None, "") for file in FILES),
        ("pose", inverse_poses, "poses=w2c"),
        ("valid_frames.npy", npy("|V0", 10**18), ".npy"),
        ("valid_frames.npy", npy("<f8", 10**10), ".npy"),
        (KEYS, b"0\none\n", "'one'"),
        (K, b"1 2", "3x3"),
        ("depth/0.png", no_depth, ""),
        ("pose/0.txt", b"-inf " * 16, "-inf"),
    ],
)
def test_unusable_files_of_walks_are_named(
    toy_rooms: Path, tmp_path: Path, file: str, content: Any, named: str
) -> None:
    shutil.copytree(toy_rooms / "scannet" / SCENE, tmp_path / SCENE)
    damage(tmp_path / SCENE / file, content)
    with refused(None, tmp_path / SCENE / file, named):
        walk = reader(tmp_path).walks[0]
        walk.views(walk.frames[:1])


def array(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array, allow_pickle=True)
    return file.getvalue()


LIST, FACES = "mp3d_skybox/test.npy", f"{PANORAMA}/matterport_skybox_images"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (LIST, array(np.array([["a"] * 6, None], object)), "pickled"),
        (LIST, array(np.array([["a/b/c.jpg"]])), "(N, 6)"),
        (LIST, b"no", ".npy"),
        (f"{PANORAMA}/blip3/skybox_90.txt", b"\n", ""),
        (f"{FACES}/skybox_skybox3_sami.jpg", None, ""),
        (f"{FACES}/skybox_skybox0_sami.jpg", lambda path: Image.new("RGB", (32, 24)).save(path), "(32, 24)"),
        (f"{FACES}/skybox_skybox0_sami.jpg", lambda path: Image.new("RGB", (1, 1)).save(path), "(1, 1)"),
    ],
)
def test_unusable_files_of_panoramas_are_named(
    toy_rooms: Path, tmp_path: Path, file: str, content: Any, named: str
) -> None:
    shutil.copytree(toy_rooms / "mp3d_skybox", tmp_path / "mp3d_skybox")
    damage(tmp_path / file, content)
    with refused(None, tmp_path / file, named):
        panoramas(tmp_path, size=8).scene(0)


def test_changed_files_are_noticed_and_incomplete_panoramas_are_not_trained(toy_rooms: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_rooms, tmp_path, dirs_exist_ok=True)
    for make, file in ((panoramas, f"{PANORAMA}/blip3/skybox_90.txt"), (reader, f"scannet/{SCENE}/color/0.jpg")):
        before = make(tmp_path).describe()
        assert (tmp_path / file).is_file() and make(tmp_path).describe() == before
        os.utime(tmp_path / file, ns=(0, 0))
        assert make(tmp_path).describe() != before
    lines = np.load(tmp_path / "mp3d_skybox/train.npy")
    other = np.char.replace(lines, "panorama-train-00000", "other")
    shutil.copytree(tmp_path / "mp3d_skybox/panorama-train-00000", tmp_path / "mp3d_skybox/other")
    np.save(tmp_path / "mp3d_skybox/train.npy", np.concatenate([other, lines]))
    file = tmp_path / "mp3d_skybox/other/blip3/skybox_90.txt"
    assert len(panoramas(tmp_path, "train")) == 2
    file.unlink()
    assert panoramas(tmp_path, "train").panoramas == lines.tolist()
    np.save(tmp_path / "mp3d_skybox/train.npy", other)
    with refused(None, file):
        panoramas(tmp_path, "train")


def test_folder_without_a_usable_scene_is_refused(toy_rooms: Path, tmp_path: Path, monkeypatch) -> None:
    with refused("path", tmp_path, "test/SCENE"):
        reader(tmp_path)
    monkeypatch.setattr(scannet, "MIN_KEYS", 1000)
    with refused("path", toy_rooms, 1000):
        reader(toy_rooms)


def test_stopped_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_rooms_config(tmp_path, frames=3, height=16, width=16, test_panoramas=0, test_walks=0)
    make_rooms.run(config, quiet=True)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.suffix in (".jpg", ".png", ".npy")}
    shutil.rmtree(tmp_path / "scannet/train/walk-train-00000")
    monkeypatch.setattr(make_rooms, "write_panorama", None)  # is there already
    make_rooms.run(config, resume=tmp_path, quiet=True)
    assert len(files) == 6 + 6 + 2 and all(path.read_bytes() == data for path, data in files.items())
    monkeypatch.setattr(make_rooms, "write_frames", lambda *args: 1 / 0)
    shutil.rmtree(tmp_path / "scannet/train/walk-train-00000")
    with pytest.raises(ZeroDivisionError):
        make_rooms.run(config, resume=tmp_path, quiet=True)
    assert not list((tmp_path / "scannet/train").iterdir())
