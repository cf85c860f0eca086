import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import damage
from tests.support.errors import refused
from threedgen.data.matterport import PREFIX, MatterportPanoramas
from threedgen.data.options import MatterportConfig
from threedgen.evaluation.metrics.overlap import panorama_overlap
from threedgen.geometry.images import psnr
from threedgen.geometry.warp import to_opencv
from threedgen.toybox.data.room_scenes import RoomPanoramas
from threedgen.toybox.options import RoomPanoramasConfig

SCENE = "mp3d_skybox/panorama-test-00000"


def reader(root: Path, split: str = "test", **more: object) -> MatterportPanoramas:
    return MatterportPanoramas(MatterportConfig.model_validate({"path": str(root), "size": 48, **more}), 0, split)


def test_views_equal_direct_renders(toy_rooms: Path) -> None:
    scene = reader(toy_rooms).scene(0)
    direct = RoomPanoramas(RoomPanoramasConfig(size=48), 0, "test").scene(0)
    assert psnr(direct.views.images.numpy(), scene.views.images.numpy()) > 26
    K, c2w = to_opencv(scene.views.cameras)
    assert np.allclose(c2w[:, :3, :3], to_opencv(direct.views.cameras)[1][:, :3, :3], atol=1e-6)
    assert min(panorama_overlap(scene.views.images, K, c2w[:, :3, :3])) > 20
    source = RoomPanoramas(RoomPanoramasConfig(), 0, "test")
    assert scene.captions == tuple(f"This is one view of a scene. {text}" for text in source.directions(0))


def test_training_views_start_at_random_yaws_with_the_nearest_caption(toy_rooms: Path) -> None:
    train = reader(toy_rooms, "train", count=30, size=16)
    first = [train.first_yaw(index) for index in range(30)]
    assert len(train) == 30 and len(set(first)) > 20 and first == [train.first_yaw(index) for index in range(30)]
    texts = RoomPanoramas(RoomPanoramasConfig(), 0, "train").directions(0)
    index = next(k for k, yaw in enumerate(first) if yaw > 340)
    assert train.scene(index).captions == tuple(PREFIX + text for text in texts)  # yaws above 340 are nearest to 0
    index = next(k for k, yaw in enumerate(first) if 70 < yaw < 110)
    assert train.scene(index).captions == tuple(PREFIX + text for text in np.roll(texts, -2))
    assert reader(toy_rooms / "mp3d_skybox").describe() != reader(toy_rooms, size=16).describe()


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array, allow_pickle=True)
    return file.getvalue()


LIST, FACES = "mp3d_skybox/test.npy", f"{SCENE}/matterport_skybox_images"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (LIST, npy(np.array([["a"] * 6, None], object)), "pickled"),
        (LIST, npy(np.array([["a/b/c.jpg"]])), "(N, 6)"),
        (LIST, npy(np.array([["../../b/c.jpg"] * 6])), "'../../b/c.jpg'"),
        (LIST, b"no", ".npy"),
        (LIST, None, ""),
        (f"{SCENE}/blip3/skybox_90.txt", None, ""),
        (f"{SCENE}/blip3/skybox_90.txt", b"\n", ""),
        (f"{FACES}/skybox_skybox3_sami.jpg", None, ""),
        (f"{FACES}/skybox_skybox0_sami.jpg", lambda path: Image.new("RGB", (32, 24)).save(path), "(32, 24)"),
        (f"{FACES}/skybox_skybox0_sami.jpg", lambda path: Image.new("RGB", (1, 1)).save(path), "(1, 1)"),
    ],
)
def test_unusable_files_are_named(toy_rooms: Path, tmp_path: Path, file: str, content: Any, named: str) -> None:
    shutil.copytree(toy_rooms / "mp3d_skybox", tmp_path / "mp3d_skybox")
    damage(tmp_path / file, content)
    with refused(None, tmp_path / file, named):
        reader(tmp_path, size=8).scene(0)
