"""Walks in ScanNet's layout, as the toy rooms are written: read back they are what is rendered directly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.data.conftest import toy_rooms_config
from threedgen.config import ConfigError
from threedgen.data.options import ScanNetConfig
from threedgen.data.scannet import build
from threedgen.data.toybox import make_rooms
from threedgen.data.toybox.rooms import HALF, HEIGHT
from threedgen.data.walks import WalkScenes
from threedgen.evaluation.metrics.overlap import depth_overlap
from threedgen.geometry.images import psnr
from threedgen.geometry.views import resize
from threedgen.geometry.warp import of_cameras

SCENE = "test/walk-test-00000"


def options(root: Path, **more: object) -> ScanNetConfig:
    given = {"path": str(root), "height": 36, "width": 48, "views": 4, "least_keys": 4}
    return ScanNetConfig.model_validate(given | more)


def reader(root: Path, split: str = "test", **more: object) -> WalkScenes:
    return build(options(root, **more), 0, split)


def test_views_are_those_rendered_directly(toy_rooms: Path) -> None:
    source = reader(toy_rooms)
    scene, made = source.scene(0), make_rooms.walk(toy_rooms_config(toy_rooms), "test", 0)
    direct = made.views(made.keys[:4])
    assert list(source.walks[0].keys) == list(made.keys) and list(source.walks[0].frames) == list(range(70))
    assert scene.depth is not None and direct.depth is not None
    assert psnr(direct.views.images.numpy(), scene.views.images.numpy()) > 34
    assert (scene.depth - direct.depth).abs().max() < 6e-4 and scene.captions == direct.captions
    assert torch.allclose(scene.views.at.K, direct.views.at.K, atol=1e-4)
    assert torch.allclose(scene.views.at.c2w, direct.views.at.c2w, atol=1e-5)
    K, c2w = of_cameras(scene.views.at)
    assert min(depth_overlap(scene.views.images, scene.depth, K, c2w)) > 18


def test_another_size_shows_the_same(toy_rooms: Path) -> None:
    native, half = reader(toy_rooms).scene(0), reader(toy_rooms, height=18, width=24).scene(0)
    assert torch.equal(half.views.images, resize(native.views.images, 18, 24)) and half.depth is not None
    assert torch.allclose(half.views.at.K[:, :2], native.views.at.K[:, :2] / 2)
    K, c2w = of_cameras(half.views.at)
    assert min(depth_overlap(half.views.images, half.depth, K, c2w)) > 16


def test_entries(toy_rooms: Path) -> None:
    test = reader(toy_rooms)
    assert len(test) == len(test.walks[0].keys) // 4
    train = reader(toy_rooms, "train", between=0.5, count=40, height=9, width=12)
    given = [train.scene(index).given for index in range(20)]
    assert {(), (0, 3)} == set(given) and len(train) == 40
    assert torch.equal(train.scene(7).views.images, train.scene(7).views.images)
    many = reader(toy_rooms, "train", views=30, count=2, height=9, width=12, between=0.0)
    assert len(many.scene(0)) == 30  # more than there are key frames


def test_the_mesh_of_a_test_room(toy_rooms: Path) -> None:
    (mesh,) = trimesh.load(toy_rooms / "scannet" / SCENE / "room.glb", process=False).geometry.values()
    low, high = mesh.bounds  # (y, z, x)
    assert np.allclose(high - low, [2 * HALF, HEIGHT, 2 * HALF], atol=0.25)
    assert abs(low[1]) < 0.02 and mesh.visual.vertex_colors.shape[1] == 4


def inverse_poses(scene: Path) -> None:
    for path in (scene / "pose").iterdir():
        path.write_text(make_rooms.rows(np.linalg.inv(np.loadtxt(path))))


def no_depth(scene: Path, dtype: type = np.uint16) -> None:
    Image.fromarray(np.zeros((36, 48), dtype)).save(scene / "depth/0.png")


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (inverse_poses, "pose are world-to-camera, it seems"),
    (lambda s: (s / "color/0.jpg").unlink(), "color/0.jpg is missing"),
    (lambda s: (s / "depth/0.png").unlink(), "depth/0.png is missing"),
    (lambda s: (s / "pose/0.txt").unlink(), "pose/0.txt is missing"),
    (lambda s: (s / "prompt/0.txt").unlink(), "prompt/0.txt is missing"),
    (lambda s: (s / "valid_frames.npy").write_bytes(b"no"), "valid_frames.npy is no array"),
    (lambda s: (s / "key_frame_0.6.txt").unlink(), "key_frame_0.6.txt is missing"),
    (lambda s: (s / "key_frame_0.6.txt").write_text("0\none\n"), "the number of a frame in each line"),
    (lambda s: (s / "key_frame_0.6.txt").write_text("0\n1\n"), "has 4 key frames; the most are 2"),
    (lambda s: (s / "intrinsic/intrinsic_depth.txt").write_text("1 2"), "intrinsic_depth.txt should hold a matrix"),
    (no_depth, "depth/0.png has no depth anywhere"),
    (lambda s: no_depth(s, np.uint8), "depth/0.png should hold depth in millimetres"),
    (lambda s: (s / "depth/0.png").write_bytes((s / "depth/0.png").read_bytes()[:300]), "depth/0.png is damaged"),
    (lambda s: (s / "pose/0.txt").write_text("-inf " * 16), "pose/0.txt should hold finite numbers"),
]


@pytest.mark.parametrize(("spoil", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_sentence_with_the_file(
    toy_rooms: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    shutil.copytree(toy_rooms / "scannet" / SCENE, tmp_path / SCENE)
    spoil(tmp_path / SCENE)
    with pytest.raises(ConfigError) as error:
        walk = reader(tmp_path).walks[0]
        walk.views(walk.frames[:1])
    assert said in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_without_scenes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no scenes in test/SCENE"):
        reader(tmp_path)


def test_making_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_rooms_config(tmp_path, skybox_size=16, frames=3, height=16, width=16, test_panoramas=0, test_walks=0)
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
