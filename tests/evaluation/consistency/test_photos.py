import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.evaluation.consistency.test_run import settings
from tests.support.errors import refused
from tests.support.photographs import photographs
from tests.support.posed_photos import edit_transforms, write_colmap, write_transforms
from threedgen.data.posed import convention
from threedgen.data.posed.convention import Match, fraction_meeting
from threedgen.data.posed.files import SWAP, alternatives
from threedgen.data.posed.photos import open_photos
from threedgen.data.srn.reader import write_instance
from threedgen.evaluation.consistency import run
from threedgen.evaluation.consistency.options import FolderSamplerConfig, PosedScenesConfig
from threedgen.evaluation.consistency.photos import open_scene
from threedgen.evaluation.consistency.scenes import FolderSampler, posed
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import orbit_array
from threedgen.geometry.views import Views


def shifted(count: int = 12) -> Views:
    """Views whose common point is not the origin."""
    views = photographs(count)
    c2w = views.cameras.c2w.clone()
    c2w[:, :3, 3] += torch.tensor([3.0, -2.0, 1.0])
    return replace(views, cameras=replace(views.cameras, c2w=c2w))


def options(folder: Path, **values: Any) -> FolderSamplerConfig:
    return FolderSamplerConfig.model_validate({"path": str(folder), **values})


def test_photos_are_scored_around_their_common_point(tmp_path: Path) -> None:
    folder, out = write_colmap(tmp_path / "duck", shifted(), binary=True), tmp_path / "run"
    config = settings(out, sampler=str(folder))
    config.check()
    assert run.run(config, quiet=True) == 0
    tree = json.loads((out / "consistency.json").read_text())
    (score,) = tree["scenes"]
    assert score["scene"] == "duck" and 5 < score["mean_psnr"] < 40 and list(tree["rows"]) == ["folder"]
    assert len(tree["notes"]) == 2 and tree["rows"]["folder"]["views"] == 12 and (out / "sheet.png").is_file()
    scene = open_scene(folder, options(folder))
    expected = photographs(12).cameras.c2w
    assert torch.allclose(scene.views.cameras.c2w, expected, atol=1e-4)
    assert scene.bounds is not None
    assert scene.bounds.radius == pytest.approx(np.linalg.norm([2.9, 2.2, 0.7]), rel=1e-3)


def to_map_coordinates(tree: dict[str, Any]) -> None:
    for frame in tree["frames"]:
        for row, offset in zip(frame["transform_matrix"], (500_000.0, 5_300_000.0, 100.0), strict=False):
            row[3] += offset


def test_positions_in_map_coordinates_keep_their_precision(tmp_path: Path) -> None:
    edit_transforms(write_transforms(tmp_path, photographs(12)), to_map_coordinates)
    found = open_scene(tmp_path, options(tmp_path)).views.cameras.c2w
    assert torch.allclose(found, photographs(12).cameras.c2w, atol=1e-4)


def test_photos_are_targets_of_a_sampler_that_gets_one_of_them(tmp_path: Path) -> None:
    folder, out = write_transforms(tmp_path / "duck", shifted()), tmp_path / "run"
    scenes = {"name": "posed", "path": str(folder), "condition": 2, "views": 8}
    config = settings(out, sampler=str(folder), scenes=scenes)
    config.check()
    assert run.run(config, quiet=True) == 0
    rows = json.loads((out / "consistency.json").read_text())["rows"]
    assert rows["folder"]["psnr"] == rows["original"]["psnr"] and rows["folder"]["true_psnr"]["mean"] == 100


@pytest.mark.parametrize("in_map", [False, True])
def test_samples_of_photos_are_found_by_pose(tmp_path: Path, in_map: bool) -> None:
    """The sampler's file lacks the given photo, so its order and the common point of its cameras differ."""
    views = shifted()
    turn = Rotation.from_rotvec(np.random.default_rng(0).normal(0, 0.05, (12, 3))).as_matrix()
    views.cameras.c2w[:, :3, :3] @= torch.from_numpy(turn).float()
    photos = write_transforms(tmp_path / "data" / "duck", views)
    ours = write_transforms(tmp_path / "ours" / "duck", views.select([11, *range(2), *range(3, 11)]))
    for folder in (photos, ours) if in_map else ():
        edit_transforms(folder, to_map_coordinates)
    config = PosedScenesConfig(path=str(tmp_path / "data"), condition=2)
    (scene,) = posed(config, None, 0)
    (images,) = FolderSampler(options(ours))([scene.request(0)])
    assert scene.original and torch.equal(images, scene.original(scene.targets).images)
    edit_transforms(ours, lambda tree: tree["frames"].pop())
    with refused(None, ours / "transforms.json", 10):
        FolderSampler(options(ours))([scene.request(0)])


FLIPS = {
    "c2w-opencv": lambda m: m @ np.diag([1, -1, -1, 1]),
    "w2c-opengl": np.linalg.inv,
    "world": lambda m: SWAP @ m,
    "camera": lambda m: m @ SWAP,
    "translation": lambda m: np.concatenate([m[..., :3], (SWAP @ m)[..., 3:]], -1),
}


@pytest.mark.parametrize("name", FLIPS)
def test_flipped_axes_are_refused_by_the_viewing_axes(tmp_path: Path, name: str) -> None:
    """The photos are too small for matching features."""
    views = shifted()
    c2w = torch.from_numpy(FLIPS[name](views.cameras.c2w.double().numpy()))
    write_transforms(tmp_path, Views(views.images, replace(views.cameras, c2w=c2w)))
    with refused(None, tmp_path / "transforms.json", name):
        open_scene(tmp_path, options(tmp_path))
    if "-" in name:
        scene = open_scene(tmp_path, options(tmp_path, poses=name))
        assert torch.allclose(scene.views.cameras.c2w, photographs(12).cameras.c2w, atol=1e-4)
        assert scene.bounds is None, "the background is plain"


def test_matching_pixels_tell_conventions_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Projected points stand for features; cameras side by side do not look at a common point."""
    views = photographs(8)
    generator = torch.Generator().manual_seed(0)
    c2w = torch.eye(4).repeat(8, 1, 1)
    c2w[:, :3, 3] = torch.randn(8, 3, generator=generator) * torch.tensor([0.5, 0.3, 0.1])
    cameras = Cameras(c2w, views.cameras.projection, 16, 16)
    points = torch.randn(40, 3, generator=generator) + torch.tensor([0.0, 0, -5])
    pixels = cameras.project(points)[0].double().numpy()
    matches = [Match(a, b, np.hstack([pixels[a], pixels[b]])) for a, b in ((0, 1), (2, 5), (3, 7))]
    K = cameras.K.double().numpy()
    right, flipped = (alternatives(c2w.double().numpy())[name] for name in ("c2w-opengl", "c2w-opencv"))
    assert min(fraction_meeting(right, K, match) for match in matches) == 1
    assert max(fraction_meeting(flipped, K, match) for match in matches) < 0.2
    monkeypatch.setattr(convention, "matching_pixels", lambda _: matches)
    write_transforms(tmp_path / "a", Views(views.images, cameras))
    assert open_scene(tmp_path / "a", options(tmp_path / "a")).notes
    write_transforms(tmp_path / "b", Views(views.images, replace(cameras, c2w=torch.from_numpy(flipped))))
    with refused(None, "c2w-opencv"):
        open_scene(tmp_path / "b", options(tmp_path / "b"))


def test_ball_follows_the_box_or_the_surroundings(tmp_path: Path) -> None:
    views = shifted()
    noise = torch.rand(views.images.shape, generator=torch.Generator().manual_seed(0))
    write_transforms(tmp_path / "a", Views(noise, views.cameras))
    bounds = open_scene(tmp_path / "a", options(tmp_path / "a")).bounds
    assert bounds is not None and bounds.radius == pytest.approx(1.5 * 2.6, rel=1e-3) and bounds.near < 0.2
    edit_transforms(tmp_path / "a", lambda tree: tree.update(aabb_scale=2, scale=1, offset=[-2.5, 2.5, -0.5]))
    scene = open_scene(tmp_path / "a", options(tmp_path / "a"))
    assert scene.bounds is not None and scene.bounds.radius == pytest.approx(1.3)
    assert scene.bounds.near == pytest.approx(2.6 - 1.3, rel=1e-3)
    assert torch.allclose(scene.views.cameras.position, photographs(12).cameras.position, atol=1e-4)


def test_documented_snippet_writes_cameras_of_a_table_of_angles(tmp_path: Path, monkeypatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "your-files.md").read_text()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(960 * 640 * 3, dtype=np.uint8).reshape(960, 640, 3)).save("grid.png")
    exec(text.partition("```python")[2].partition("```")[0])
    at = open_photos(tmp_path, 320, None).cameras
    expected = orbit_array(np.deg2rad([20, -10, 20, -10, 20, -10]), np.deg2rad([30, 90, 150, 210, 270, 330]), 4)
    assert torch.allclose(at.c2w, torch.from_numpy(expected), atol=1e-5)
    assert at.fov.tolist() == pytest.approx([np.deg2rad(30)] * 6)


def test_too_few_photos_and_folders_without_any_are_refused(tmp_path: Path) -> None:
    write_transforms(tmp_path / "a" / "b", photographs(3))
    write_instance(tmp_path / "a" / "c", photographs(4))  # of the other layout
    (tmp_path / "a" / "d").mkdir()
    (write_transforms(tmp_path / "a" / "e", photographs(3)) / "transforms.json").rename(tmp_path / "a/e/cameras.json")
    with refused(None, "3", "4"):
        open_scene(tmp_path / "a" / "b", options(tmp_path))
    assert options(tmp_path / "a").folders() == [tmp_path / "a" / "b", tmp_path / "a" / "c"]
    (note,) = options(tmp_path / "a").left_out()
    assert str(tmp_path / "a" / "e") in note and not options(tmp_path / "a" / "b").left_out()
    for name in ("colmap", "dense"):
        write_colmap(tmp_path / "d" / name, photographs(4), binary=True)
        for file in (tmp_path / "d" / name / "sparse" / "0").iterdir():
            file.rename(tmp_path / "d" / name / file.name)
    with refused("path", "d"):
        FolderSampler(options(tmp_path / "d"))
    (tmp_path / "c").mkdir()
    for name in ("c", "none"):
        with refused("path"):
            options(tmp_path / name).check()
