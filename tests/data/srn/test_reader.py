import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import damage
from tests.support.errors import refused
from threedgen.data.srn.options import SRNPairsConfig
from threedgen.data.srn.pairs import ArchiveScenes
from threedgen.data.srn.reader import open_instance, write_instance
from threedgen.data.srn.scene_files import condition_and_targets, scenes, split_folder
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.toybox.data import make_srn as make
from threedgen.toybox.options import MakeSRNToyboxConfig

SIZE = 24


def random_views(count: int = 4) -> Views:
    at = orbit(count, 0.4, 2.6, 0.7, SIZE, SIZE)
    return Views(torch.rand(count, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)), at)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_instance(tmp_path / "cars_test" / "one", random_views())


def test_reader_returns_the_written_views(scene: Path) -> None:
    for name in ("rgb/._000000.png", "rgb/._000001.png", "pose/._000001.txt"):  # of macOS
        (scene / name).write_bytes(b"\0\5\x16\7")
    views, instance = random_views(), open_instance(scene)
    result = instance.views()
    assert instance.names == ("000000", "000001", "000002", "000003") and instance.name == "one"
    assert (result.images - views.images).abs().max() < 0.5 / 255 + 1e-6
    assert torch.allclose(result.cameras.c2w, views.cameras.c2w, atol=1e-6)
    assert torch.allclose(result.cameras.K, views.cameras.K)
    pose = np.loadtxt(scene / "pose" / "000000.txt").reshape(4, 4)  # third column: towards the origin, second: down
    assert np.allclose(pose[:3, 2], -pose[:3, 3] / np.linalg.norm(pose[:3, 3]), atol=1e-6) and pose[2, 1] < -0.5
    subset = instance.views([2, 0], size=12)
    assert torch.allclose(subset.images[1], result.images[0].reshape(12, 2, 12, 2, 3).mean((1, 3)), atol=1e-6)
    assert torch.allclose(subset.cameras.K[0, :2], result.cameras.K[0, :2] / 2)


def test_write_instance_is_atomic_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = random_views()
    monkeypatch.setattr(Path, "write_text", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_instance(tmp_path / "scene", views)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    write_instance(tmp_path / "scene", views, numbers=[5, 6, 8, 9])
    assert open_instance(tmp_path / "scene").numbers == (5, 6, 8, 9)
    with pytest.raises(FileExistsError):
        write_instance(tmp_path / "scene", views)


def matrix(K: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.8f}" for x in row) for row in K) + "\n"


def test_all_forms_of_intrinsics_are_equivalent(scene: Path) -> None:
    expected = open_instance(scene).cameras.K
    path, padded = scene / "intrinsics.txt", np.eye(4)
    padded[:3, :3] = expected[0]
    for text in (matrix(padded[:3, :3]), " ".join(matrix(padded).split())):
        path.write_text(text)
        assert torch.allclose(open_instance(scene).cameras.K, expected, atol=1e-5)
    path.unlink()
    (scene / "intrinsics").mkdir()
    for k in range(4):
        (scene / "intrinsics" / f"{k:06d}.txt").write_text(matrix(padded[:3, :3] + np.diag([k, 0, 0])))
    assert torch.allclose(open_instance(scene).cameras.K[:, 0, 0], expected[:, 0, 0] + torch.arange(4.0), atol=1e-4)
    with refused(None, scene, "intrinsics"):
        ArchiveScenes(SRNPairsConfig(path=str(scene.parent.parent), held_out=2, split="cars_test"), 16).scene(0)


def test_pairs_leave_out_incomplete_scenes_and_notice_changed_files(scene: Path) -> None:
    options = SRNPairsConfig(path=str(scene.parent.parent), held_out=2, split="cars_test")
    for name, count in (("two", 4), ("few", 3), ("wide", 5), ("broken", 4)):
        write_instance(scene.parent / name, random_views(count))
    (scene.parent / "broken" / "pose" / "000002.txt").unlink()
    source = ArchiveScenes(options, 16)
    assert source.views == 4 and [folder.name for folder in source.folders] == ["one", "two", "wide"]
    before = source.describe()
    assert ArchiveScenes(options, 16).describe() == before
    for file in ("rgb/000001.png", "pose/000001.txt", "intrinsics.txt"):
        os.utime(scene / file, ns=(0, len(file)))
        assert before != (before := ArchiveScenes(options, 16).describe())
    for folder in source.folders:
        shutil.rmtree(folder / "pose")
    with refused(None, "pose"):
        shutil.rmtree(scene.parent / "few")
        ArchiveScenes(options, 16)


def test_world_to_camera_poses_and_a_y_up_world_are_converted(scene: Path) -> None:
    expected = open_instance(scene).cameras.c2w
    rotation = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    for path in (scene / "pose").iterdir():
        path.write_text(matrix(rotation @ np.loadtxt(path).reshape(4, 4)))
    assert torch.allclose(open_instance(scene, up="y").cameras.c2w, expected, atol=1e-5)
    world_to_camera(scene / "pose")
    path = scene / "intrinsics.txt"
    path.write_text(path.read_text() + "1\n")  # the mark
    assert torch.allclose(open_instance(scene, up="y").cameras.c2w, expected, atol=1e-5)


def test_transparent_pixels_become_white_with_one_warning(scene: Path, caplog: pytest.LogCaptureFixture) -> None:
    opaque = open_instance(scene).views().images
    for path in (scene / "rgb").iterdir():
        Image.open(path).convert("RGBA").save(path)
    assert torch.equal(open_instance(scene).views().images, opaque) and not caplog.records
    pixels = np.array(Image.open(scene / "rgb" / "000002.png"))
    pixels[:5, :, 3] = 0
    Image.fromarray(pixels).save(scene / "rgb" / "000002.png")
    with caplog.at_level(logging.WARNING):
        images = open_instance(scene).views().images
        open_instance(scene).views()
    assert (images[2, :5] == 1).all() and torch.equal(images[2, 5:], opaque[2, 5:])
    assert len(caplog.records) == 1 and "000002.png" in caplog.text


def test_split_folder_searches_the_layouts_of_the_archives(scene: Path, tmp_path: Path) -> None:
    split = tmp_path / "cars_test"
    assert split_folder(tmp_path, "cars_test") == split_folder(split, "cars_test") == split
    shutil.copytree(split, tmp_path / "srn" / "any" / "cars_test")
    assert split_folder(tmp_path / "srn", "cars_test") == tmp_path / "srn" / "any" / "cars_test"
    nested = tmp_path / "chairs_train" / "chairs_2.0_train"
    nested.mkdir(parents=True)
    shutil.copytree(scene, nested / "two")
    assert split_folder(tmp_path, "chairs_train") == split_folder(nested.parent, "chairs_train") == nested
    assert [path.name for path in scenes(nested)] == ["two"]
    with refused(None, tmp_path, "cars_val"):
        split_folder(tmp_path, "cars_val")
    with refused(None, split, "cars_train"):
        split_folder(split, "cars_train")  # never another split's scenes


def test_condition_and_targets_follow_the_standard_protocol(tmp_path: Path) -> None:
    instance = open_instance(write_instance(tmp_path / "scene", random_views(6), range(60, 66)))
    assert condition_and_targets(instance) == (4, [0, 1, 2, 3, 5])
    with refused("condition", 7, 60, 65):
        condition_and_targets(instance, 7)


def multiply(right: np.ndarray) -> Callable[[Path], object]:
    return lambda path: path.write_text(matrix(np.loadtxt(path).reshape(4, 4) @ right))


def world_to_camera(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text(matrix(np.linalg.inv(np.loadtxt(path).reshape(4, 4))))


def keep_one_view(scene: Path) -> None:
    for k in (1, 2, 3):
        (scene / f"rgb/00000{k}.png").unlink()
        (scene / f"pose/00000{k}.txt").unlink()


RGB, POSE, K = "rgb/000001.png", "pose/000001.txt", "intrinsics.txt"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (RGB, lambda path: Image.new("RGB", (24, 20)).save(path), "20 x 24"),
        (POSE, None, ""),
        (POSE, multiply(np.diag([1.1, 1.1, 1.1, 1])), "1.1"),
        (POSE, multiply(np.diag([-1.0, 1, 1, 1])), "-1"),
        (POSE, multiply(np.eye(4) + 0.5 * np.eye(4, k=-3)), "[0.5, "),
        (K, b"32 64 64 0\n0 0 0\n1\n128 128\n", "128 x 128"),
        (K, b"-32 12 12 0\n0 0 0\n1\n24 24\n", "-32"),
        (K, b"131 0 64 0 131 64 0 0 1", "(64, 64)"),
        (K, b"32 0 12 0 0 12 0 0 1", "[32.0, 0.0, 12.0]"),
        ("pose", world_to_camera, "intrinsics.txt"),
        (".", keep_one_view, "1 view"),
    ],
)
def test_damaged_scenes_are_refused(scene: Path, file: str, content: Any, named: str) -> None:
    damage(scene / file, content)
    with refused(None, scene / file, named):
        open_instance(scene)


@pytest.fixture(autouse=True)
def few_test_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "TEST_VIEWS", 66)


def tiny(out: Path, **more: object) -> MakeSRNToyboxConfig:
    counts = {"train": 2, "val": 0, "test": 1, "size": 16, "train_views": 3}
    values = {"task": "make-srn-toybox", "out": str(out), "threads": 1, **counts, **more}
    return MakeSRNToyboxConfig.model_validate(values)


def test_toybox_scenes_are_read_like_the_archives(tmp_path: Path) -> None:
    assert make.run(tiny(tmp_path), quiet=True) == 0
    splits = ["cars_train", "cars_test", "chairs_train", "chairs_test"]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(splits)
    assert json.loads((tmp_path / "summary.json").read_text())["files"] == splits
    test = open_instance(scenes(split_folder(tmp_path, "cars_test"))[0])
    condition, targets = condition_and_targets(test)
    assert condition == 64 and len(targets) == 65
    train = [open_instance(path) for path in scenes(split_folder(tmp_path, "chairs_train"))]
    assert [len(one) for one in train] == [3, 3] and not torch.equal(train[0].cameras.c2w, train[1].cameras.c2w)
    views = train[0].views()
    assert (views.images[:, 0, 0] == 1).all() and (views.images < 0.9).any()


def test_stopped_run_makes_only_missing_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, families=("cars",))
    make.run(config, quiet=True)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))}
    shutil.rmtree(tmp_path / "cars_train" / "cars-train-00001")
    scene = Mock(wraps=make.scene)
    monkeypatch.setattr(make, "scene", scene)
    make.run(config, resume=tmp_path, quiet=True)
    assert [call.args[1].name for call in scene.call_args_list] == ["cars-train-00001"]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))} == files
