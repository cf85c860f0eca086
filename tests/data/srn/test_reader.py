"""Scenes in the layout of the SRN archives: from the writer through the reader, both forms of intrinsics, mistakes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from threedgen.config import ConfigError
from threedgen.data.srn import make
from threedgen.data.srn.layout import scenes, split_folder
from threedgen.data.srn.options import MakeSRNToyboxConfig
from threedgen.data.srn.reader import open_instance
from threedgen.data.srn.scene_files import condition_and_targets
from threedgen.data.srn.writer import write_instance
from threedgen.data.toybox.primitives import inside
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import Toybox
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views

SIZE = 24


def random_views(count: int = 4) -> Views:
    """Cameras around the origin whose pictures are noise."""
    at = orbit(count, 0.4, 2.6, 0.7, SIZE, SIZE)
    return Views(torch.rand(count, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)), at)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_instance(tmp_path / "cars_test" / "one", random_views())


# --- cameras -----------------------------------------------------------------------------------------------------


def test_resizing_keeps_the_corners_where_they_are() -> None:
    """Averaging blocks of 2 x 2 pixels: the ray of a block is the mean of its rays, off-centre cameras included."""
    at = orbit(2, 0.3, 2.0, 0.2, 8, 8)
    K = at.K.clone()
    K[:, 0, 2] += 1.5
    at = Cameras(at.c2w, Projection(K), 8, 8)
    fine, coarse = at.rays()[1], at.with_size(4, 4).rays()[1]
    blocks = fine.unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
    assert torch.allclose(coarse, torch.nn.functional.normalize(blocks, dim=-1), atol=2e-4)
    views = Views(torch.rand(2, 8, 8, 3), at).resized(4)
    assert torch.equal(views.at.K, at.with_size(4, 4).K)
    with pytest.raises(ValueError, match="cameras are of pictures"):
        Views(torch.rand(2, 8, 8, 3), at.with_size(4, 4))


# --- there and back ----------------------------------------------------------------------------------------------


def test_what_is_written_is_read(scene: Path) -> None:
    views, instance = random_views(), open_instance(scene)
    again = instance.views()
    assert instance.names == ("000000", "000001", "000002", "000003") and instance.name == "one"
    assert (again.images - views.images).abs().max() < 0.5 / 255 + 1e-6
    assert torch.allclose(again.at.c2w, views.at.c2w, atol=1e-6) and torch.allclose(again.at.K, views.at.K)
    some = instance.views([2, 0], size=12)
    assert torch.allclose(some.images[1], again.images[0].reshape(12, 2, 12, 2, 3).mean((1, 3)), atol=1e-6)
    assert torch.allclose(some.at.K[0, :2], again.at.K[0, :2] / 2)


def test_the_file_has_opencv_axes(scene: Path) -> None:
    """Third column: where the camera looks, towards the origin; second: down."""
    pose = np.loadtxt(scene / "pose" / "000000.txt").reshape(4, 4)
    assert np.allclose(pose[:3, 2], -pose[:3, 3] / np.linalg.norm(pose[:3, 3]), atol=1e-6) and pose[2, 1] < -0.5


def test_rays_hit_what_the_pictures_show(tmp_path: Path) -> None:
    """The whole way: solids -> pictures -> files -> rays, which meet the solids where the pictures are not white."""
    asset = Toybox(3).asset(5)
    at = orbit(3, 0.5, 2.6, 0.7, SIZE, SIZE, azimuth=0.3)
    fov = np.full(3, 0.7)
    picture = render([asset], np.zeros(3, int), at.c2w.numpy(), fov, SIZE, 1.0, 1, truth=True)
    folder = write_instance(tmp_path / "scene", Views(torch.from_numpy(picture.rgb), at))
    views = open_instance(folder).views()
    origins, directions = (part.double().numpy() for part in views.at.rays())
    along = origins[..., None, :] + directions[..., None, :] * np.linspace(1.6, 3.6, 300)[:, None]
    hit = inside(asset.primitives, along.reshape(-1, 3)).reshape(along.shape[:-1]).any(-1)
    seen = (views.images < 0.995).any(-1).numpy()
    assert 0.1 < seen.mean() < 0.9 and (hit == seen).mean() > 0.99
    first = along[np.isfinite(picture.depth)][:, :, :]  # and at the depth that the ray caster says
    distance = np.linspace(1.6, 3.6, 300)[
        inside(asset.primitives, first.reshape(-1, 3)).reshape(first.shape[:2]).argmax(1)
    ]
    assert np.quantile(np.abs(distance - picture.depth[np.isfinite(picture.depth)]), 0.98) < 0.02


def test_a_scene_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = random_views()
    monkeypatch.setattr(Path, "write_text", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_instance(tmp_path / "scene", views)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    write_instance(tmp_path / "scene", views, numbers=[5, 6, 8, 9])
    assert open_instance(tmp_path / "scene", gaps=True).numbers == (5, 6, 8, 9)
    with pytest.raises(FileExistsError):
        write_instance(tmp_path / "scene", views)
    views.at.K[1] *= 2
    with pytest.raises(ValueError, match="one focal length"):
        write_instance(tmp_path / "other", views)


# --- forms -------------------------------------------------------------------------------------------------------


def matrix(K: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.8f}" for x in row) for row in K) + "\n"


def test_both_forms_of_intrinsics_say_the_same(scene: Path) -> None:
    wanted = open_instance(scene).at.K
    path = scene / "intrinsics.txt"
    four_lines = path.read_text()
    assert [len(line.split()) for line in four_lines.splitlines()] == [4, 3, 1, 2]
    path.write_text(matrix(wanted[0].numpy()))
    assert torch.allclose(open_instance(scene).at.K, wanted, atol=1e-5)
    big = np.eye(4)
    big[:3, :3] = wanted[0]
    path.write_text(" ".join(matrix(big).split()))
    assert torch.allclose(open_instance(scene).at.K, wanted, atol=1e-5)
    path.unlink()
    (scene / "intrinsics").mkdir()
    for k in range(4):
        (scene / "intrinsics" / f"{k:06d}.txt").write_text(matrix(wanted[0].numpy() * [[1 + k], [1 + k], [1]]))
    with pytest.raises(ConfigError, match=r"intrinsics/000001.txt seems to be for pictures of another size"):
        open_instance(scene)
    for k in range(4):
        K = wanted[0].numpy().copy()
        K[0, 0] += k
        (scene / "intrinsics" / f"{k:06d}.txt").write_text(matrix(K))
    assert torch.allclose(open_instance(scene).at.K[:, 0, 0], wanted[:, 0, 0] + torch.arange(4.0), atol=1e-4)


def test_poses_that_are_world_to_camera_and_matrices_in_four_lines(scene: Path) -> None:
    wanted = open_instance(scene).at.c2w
    world_to_camera(scene)
    path = scene / "intrinsics.txt"
    path.write_text(path.read_text() + "1\n")
    assert torch.allclose(open_instance(scene).at.c2w, wanted, atol=1e-5)


def test_a_world_with_y_up_is_turned(scene: Path) -> None:
    wanted = open_instance(scene)
    turn = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    for path in (scene / "pose").iterdir():
        path.write_text(matrix(turn @ np.loadtxt(path).reshape(4, 4)))
    assert torch.allclose(open_instance(scene, up="y").at.c2w, wanted.at.c2w, atol=1e-5)


def test_transparent_pixels_are_white_and_said_once(scene: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_splits_are_found_where_the_archives_have_them(scene: Path, tmp_path: Path) -> None:
    found = tmp_path / "cars_test"
    assert split_folder(tmp_path, "cars_test") == split_folder(found, "cars_test") == found
    shutil.copytree(found, tmp_path / "srn" / "any" / "cars_test")
    assert split_folder(tmp_path / "srn", "cars_test") == tmp_path / "srn" / "any" / "cars_test"
    nested = tmp_path / "chairs_train" / "chairs_2.0_train"
    nested.mkdir(parents=True)
    shutil.copytree(scene, nested / "two")
    assert split_folder(tmp_path, "chairs_train") == split_folder(nested.parent, "chairs_train") == nested
    assert [path.name for path in scenes(nested)] == ["two"]
    with pytest.raises(ConfigError, match="has no folder cars_val"):
        split_folder(tmp_path, "cars_val")
    with pytest.raises(ConfigError, match="has no folder cars_train"):
        split_folder(found, "cars_train")  # never another split's scenes


def test_the_standard_protocol(tmp_path: Path) -> None:
    instance = open_instance(write_instance(tmp_path / "scene", random_views(6), range(60, 66)))
    assert condition_and_targets(instance) == (4, [0, 1, 2, 3, 5])
    with pytest.raises(ConfigError, match=r"condition: .*rgb has no view of this number; .* from 60 to 65 \(got 7\)"):
        condition_and_targets(instance, 7)


# --- mistakes ----------------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[np.ndarray], object]) -> None:
    pose = np.loadtxt(path).reshape(4, 4)
    change(pose)
    path.write_text(matrix(pose))


def scale(pose: np.ndarray) -> None:
    pose[:3, :3] *= 1.1


def mirror(pose: np.ndarray) -> None:
    pose[:3, 0] *= -1


def last_row(pose: np.ndarray) -> None:
    pose[3, 0] = 0.5


def one_place(folder: Path) -> None:
    for path in (folder / "pose").iterdir():
        edit(path, lambda pose: pose[:3, 3].fill(0.7))


def world_to_camera(folder: Path) -> None:
    for path in (folder / "pose").iterdir():
        path.write_text(matrix(np.linalg.inv(np.loadtxt(path).reshape(4, 4))))


def one_view(folder: Path) -> None:
    for k in (1, 2, 3):
        (folder / "rgb" / f"00000{k}.png").unlink()
        (folder / "pose" / f"00000{k}.txt").unlink()


def both(folder: Path) -> None:
    (folder / "rgb" / "000001.png").unlink()
    (folder / "pose" / "000001.txt").unlink()


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "rgb" / "000001.png").unlink(), "rgb/000001.png is missing"),
    (lambda f: (f / "pose" / "000002.txt").unlink(), "pose/000002.txt is missing"),
    (both, "rgb/000001.png is missing"),
    (lambda f: shutil.rmtree(f / "pose"), "pose is missing"),
    (lambda f: (f / "intrinsics.txt").unlink(), "intrinsics.txt is missing"),
    (lambda f: (f / "intrinsics.txt").write_text("32 12 12\n"), "intrinsics.txt should hold"),
    (lambda f: (f / "intrinsics.txt").write_text("32 64 64 0\n0 0 0\n1\n128 128\n"), "for pictures of 128 x 128"),
    (lambda f: (f / "intrinsics.txt").write_text("-32 12 12 0\n0 0 0\n1\n24 24\n"), "focal length -32"),
    (lambda f: (f / "intrinsics.txt").write_text("131 0 64 0 131 64 0 0 1"), "seems to be for pictures of another"),
    (lambda f: (f / "intrinsics.txt").write_text("32 0 12 0 0 12 0 0 1"), "is no matrix of intrinsics"),
    (lambda f: edit(f / "pose" / "000003.txt", scale), "pose/000003.txt is not rigid"),
    (lambda f: edit(f / "pose" / "000003.txt", mirror), "pose/000003.txt is not rigid"),
    (lambda f: edit(f / "pose" / "000003.txt", last_row), "pose/000003.txt is not rigid: its last row"),
    (lambda f: (f / "pose" / "000001.txt").write_text("1 2 3"), "pose/000001.txt should hold the 16 numbers"),
    (lambda f: (f / "pose" / "000001.txt").write_text("nan " * 16), "pose/000001.txt should hold finite"),
    (lambda f: (f / "pose" / "000001.txt").write_text("hello"), "pose/000001.txt should hold numbers"),
    (lambda f: (f / "pose" / "000001.txt").write_bytes(b"\xff\xfe1"), "pose/000001.txt cannot be read"),
    (lambda f: Image.new("RGB", (24, 20)).save(f / "rgb" / "000002.png"), "rgb/000002.png has 20 x 24 pixels"),
    (lambda f: (f / "rgb" / "000000.png").write_bytes(b"no"), "rgb/000000.png cannot be read as a picture"),
    (one_place, "pose: the cameras are all in one place"),
    (world_to_camera, "are the poses world-to-camera?"),
    (one_view, "one has 1 view, and at least 2"),
    (lambda f: shutil.rmtree(f), "one is no folder"),
]


@pytest.mark.parametrize(("spoil", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_sentence_with_the_file(scene: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(scene)
    with pytest.raises(ConfigError) as error:
        open_instance(scene)
    assert said in str(error.value) and "\n" not in str(error.value) and str(scene) in str(error.value)


def test_a_picture_that_is_cut_off_is_named(scene: Path) -> None:
    path = scene / "rgb" / "000001.png"
    path.write_bytes(path.read_bytes()[:200])
    instance = open_instance(scene)  # its beginning is whole
    with pytest.raises(ConfigError, match="rgb/000001.png is damaged"):
        instance.views()


def test_flipping_axes_twice_is_nothing() -> None:
    c2w = random_views().at.c2w
    assert torch.equal(opencv_axes(opencv_axes(c2w)), c2w) and not torch.equal(opencv_axes(c2w), c2w)


def tiny(out: Path, **more: object) -> MakeSRNToyboxConfig:
    given = {"train": 2, "val": 0, "test": 1, "size": 16, "train_views": 3, "test_views": 66, "supersample": 1}
    values = {"task": "make-srn-toybox", "out": str(out), "threads": 1, **given, **more}
    return MakeSRNToyboxConfig.model_validate(values)


def test_the_toybox_is_read_like_the_archives(tmp_path: Path) -> None:
    assert make.run(tiny(tmp_path), quiet=True) == 0
    made = ["cars_train", "cars_test", "chairs_train", "chairs_test"]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(made)
    assert json.loads((tmp_path / "summary.json").read_text())["files"] == made
    test = open_instance(scenes(split_folder(tmp_path, "cars_test"))[0])
    given, targets = condition_and_targets(test)
    assert given == 64 and len(targets) == 65
    train = [open_instance(path) for path in scenes(split_folder(tmp_path, "chairs_train"))]
    assert [len(one) for one in train] == [3, 3] and not torch.equal(train[0].at.c2w, train[1].at.c2w)
    views = train[0].views()
    assert (views.images[:, 0, 0] == 1).all() and (views.images < 0.9).any()


def test_making_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, families=("cars",))
    make.run(config, quiet=True)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))}
    lost = tmp_path / "cars_train" / "cars-train-00001"
    shutil.rmtree(lost)
    made: list[str] = []
    real = make.scene

    def counted(config: MakeSRNToyboxConfig, job: make.Job) -> Views:
        made.append(job.name)
        return real(config, job)

    monkeypatch.setattr(make, "scene", counted)
    make.run(config, resume=tmp_path, quiet=True)
    assert made == ["cars-train-00001"]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))} == files
