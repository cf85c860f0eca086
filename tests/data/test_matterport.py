"""Skyboxes in Matterport3D's layout, as the toy rooms are written: read back they are what is rendered directly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import toy_rooms_config
from threedgen.config import ConfigError
from threedgen.data.matterport import MatterportPanoramas
from threedgen.data.options import MatterportConfig, RoomPanoramasConfig
from threedgen.data.toybox.make_rooms import panoramas
from threedgen.data.toybox.room_scenes import RoomPanoramas
from threedgen.evaluation.metrics.overlap import panorama_overlap
from threedgen.geometry.images import psnr
from threedgen.geometry.warp import of_cameras

SCENE = "mp3d_skybox/panorama-test-00000"


def reader(root: Path, split: str = "test", **more: object) -> MatterportPanoramas:
    return MatterportPanoramas(MatterportConfig.model_validate({"path": str(root), "size": 48, **more}), 0, split)


def test_views_are_those_rendered_directly(toy_rooms: Path) -> None:
    scene = reader(toy_rooms).scene(0)
    direct = RoomPanoramas(RoomPanoramasConfig(size=48), 0, "test").scene(0)
    assert psnr(direct.views.images.numpy(), scene.views.images.numpy()) > 26
    K, c2w = of_cameras(scene.views.at)
    assert np.allclose(c2w[:, :3, :3], of_cameras(direct.views.at)[1][:, :3, :3], atol=1e-6)
    assert min(panorama_overlap(scene.views.images, K, c2w[:, :3, :3])) > 20
    source = panoramas(toy_rooms_config(toy_rooms), "test")
    assert scene.captions == tuple(f"This is one view of a scene. {text}" for text in source.directions(0))


def test_training_views_begin_anywhere_with_the_nearest_caption(toy_rooms: Path) -> None:
    train = reader(toy_rooms, "train", count=30, prefix="", size=16)
    first = [train.first_yaw(index) for index in range(30)]
    assert len(train) == 30 and len(set(first)) > 20 and first == [train.first_yaw(index) for index in range(30)]
    texts = panoramas(toy_rooms_config(toy_rooms), "train").directions(0)
    index = next(k for k, yaw in enumerate(first) if yaw > 340)
    assert train.scene(index).captions == tuple(texts)  # 350 degrees are nearest to 0
    index = next(k for k, yaw in enumerate(first) if 70 < yaw < 110)
    assert train.scene(index).captions == tuple(np.roll(texts, -2))
    assert reader(toy_rooms / "mp3d_skybox").describe() != reader(toy_rooms, size=16).describe()


def pickled(root: Path) -> None:
    np.save(root / "mp3d_skybox/test.npy", np.array([["a"] * 6, None], object), allow_pickle=True)


def paths(root: Path, *faces: str) -> None:
    np.save(root / "mp3d_skybox/test.npy", np.array([faces]))


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (pickled, "test.npy holds pickled objects"),
    (lambda r: (r / "mp3d_skybox/test.npy").write_bytes(b"no"), "test.npy is no array"),
    (lambda r: (r / "mp3d_skybox/test.npy").unlink(), "test.npy is missing"),
    (lambda r: paths(r, "a/b/c.jpg"), "test.npy should hold texts (N, 6)"),
    (lambda r: paths(r, *["../../b/c.jpg"] * 6), "test.npy should hold paths like"),
    (lambda r: (r / SCENE / "blip3/skybox_90.txt").unlink(), "skybox_90.txt is missing"),
    (lambda r: (r / SCENE / "blip3/skybox_90.txt").write_text("\n"), "skybox_90.txt should begin with a caption"),
    (lambda r: (r / SCENE / "matterport_skybox_images/skybox_skybox3_sami.jpg").unlink(), "skybox3_sami.jpg"),
    (
        lambda r: Image.new("RGB", (32, 24)).save(r / SCENE / "matterport_skybox_images/skybox_skybox0_sami.jpg"),
        "should be square",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_sentence_with_the_file(
    toy_rooms: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    shutil.copytree(toy_rooms / "mp3d_skybox", tmp_path / "mp3d_skybox")
    spoil(tmp_path)
    with pytest.raises(ConfigError) as error:
        reader(tmp_path, size=8).scene(0)
    assert said in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)
