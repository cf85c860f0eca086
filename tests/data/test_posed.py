"""Photos with poses: formats that describe the same cameras, lens distortion, and conventions."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.errors import refused
from tests.support.photographs import photographs
from tests.support.posed_photos import edit_transforms, write_colmap, write_transforms
from threedgen.data.posed.convention import matching_pixels
from threedgen.data.posed.photos import open_photos
from threedgen.data.posed.reader import read_posed
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.views import Views, resize


def wide_views() -> Views:
    """Return six views of 12 x 20 pixels with off-centre principal points; odd views have another focal length."""
    views = photographs(6)
    at = views.cameras.with_size(12, 20)
    K = at.K.clone()
    K[:, 0, 2] += 2
    K[:, 1, 2] -= 1
    K[1::2, :2, :2] *= 1.25
    return Views(resize(views.images, 12, 20), Cameras(at.c2w, Projection(K), 12, 20))


@pytest.mark.parametrize(
    "write",
    [
        write_transforms,
        lambda folder, views: write_colmap(folder, views, binary=False),
        lambda folder, views: write_colmap(folder, views, binary=True),
        lambda folder, views: write_colmap(folder, views, binary=True, model=4, distortion=(0.0,) * 4) / "sparse",
        lambda folder, views: write_transforms(folder, views) / "transforms.json",
    ],
    ids=["transforms", "text", "binary", "sparse", "file"],
)
def test_all_formats_give_the_written_views(tmp_path: Path, write: Callable[[Path, Views], Path]) -> None:
    views = wide_views()
    found = open_photos(write(tmp_path, views), 256)
    result = found.views()
    assert (result.images - views.images).abs().max() < 0.5 / 255 + 1e-6
    assert torch.allclose(result.cameras.c2w, views.cameras.c2w, atol=1e-5)
    assert torch.allclose(result.cameras.K, views.cameras.K, atol=1e-4)
    half = open_photos(found.posed.source, 10).cameras
    assert (half.height, half.width) == (6, 10) and torch.allclose(half.K[:, :2], views.cameras.K[:, :2] / 2, atol=1e-4)


@pytest.mark.parametrize(("model", "coefficients"), [(0, 0), (2, 1), (3, 2), (6, 8)])
def test_colmap_camera_models(tmp_path: Path, model: int, coefficients: int) -> None:
    views = photographs(3)
    write_colmap(tmp_path, views, True, model, (0.0,) * coefficients)
    found = open_photos(tmp_path, 256).cameras
    assert torch.allclose(found.K, views.cameras.K, atol=1e-4)
    assert torch.allclose(found.c2w, views.cameras.c2w, atol=1e-5)


@pytest.mark.parametrize(
    ("keypoints", "place"), [("1.0 2.5 -1 3e-05 4 17 10.0 11.0 -1 1.0 5.0 7\n", "images_4"), (None, "input"), ("", ".")]
)
def test_colmap_text_and_folders_of_photos(tmp_path: Path, keypoints: str | None, place: str) -> None:
    """The line of keypoints can be empty, and other programs leave it out."""
    views = photographs(3)
    path = write_colmap(tmp_path, views, binary=False) / "sparse" / "0" / "images.txt"
    rows = [line for line in path.read_text().splitlines() if line.strip()]
    more = "" if keypoints is None else f"\n{keypoints}"
    path.write_text(rows[0] + "".join(f"\n{row}{more}" for row in rows[1:]))
    for photo in (tmp_path / "images").iterdir():
        (tmp_path / place).mkdir(exist_ok=True)
        photo.rename(tmp_path / place / photo.name)
    found = open_photos(tmp_path, 256)
    assert torch.allclose(found.cameras.c2w, views.cameras.c2w, atol=1e-5) and len(found) == 3


INTRINSICS = ("fl_x", "fl_y", "cx", "cy")


@pytest.mark.parametrize(
    "edit",
    [
        lambda tree: [tree.pop(name) for name in "wh"],
        lambda tree: tree.update({name: str(tree[name]) for name in "wh"}, camera_model="PINHOLE"),
        lambda tree: tree.update(camera_model="pinhole"),
        lambda tree: [frame.update(file_path=frame["file_path"].replace(".png", ".JPG")) for frame in tree["frames"]],
        lambda tree: tree.update(k1=None, camera_model=None, offset=None, ply_file_path="sparse_pc.ply"),
        lambda tree: [f.update(mask_path="mask.png", sharpness=3, w=tree["w"], h=tree["h"]) for f in tree["frames"]],
        lambda tree: [frame.update(file_path="C:\\me\\fox\\" + frame["file_path"][7:]) for frame in tree["frames"]],
        lambda tree: [tree.update({name: frame.pop(name)}) for frame in tree["frames"] for name in INTRINSICS],
        lambda tree: [frame.update(transform_matrix=frame["transform_matrix"][:3]) for frame in tree["frames"]],
        lambda tree: [frame.update(transform_matrix=sum(frame["transform_matrix"], [])) for frame in tree["frames"]],
        lambda tree: tree["frames"].append({"file_path": "images/lost.png", "transform_matrix": np.eye(4).tolist()}),
        lambda tree: [
            tree.update(camera_angle_x=float(photographs(3).cameras.fov[0])),
            [frame.pop(name) for frame in tree["frames"] for name in INTRINSICS],
        ],
    ],
    ids="size text lower converted null frame Windows file rows flat lost angle".split(),
)
def test_variants_of_transforms(tmp_path: Path, edit: Any) -> None:
    views = photographs(3)
    edit_transforms(write_transforms(tmp_path, views), edit)
    found = open_photos(tmp_path, 256)
    assert torch.allclose(found.cameras.c2w, views.cameras.c2w, atol=1e-5)
    assert torch.allclose(found.cameras.K, views.cameras.K, atol=1e-4)
    assert (found.views().images - views.images).abs().max() < 0.01
    lost = "lost.png" in (tmp_path / "transforms.json").read_text()
    assert ("images/lost.png" in found.posed.missing_note) == lost
    masks = "mask_path" in (tmp_path / "transforms.json").read_text()
    assert found.posed.masks == 3 * masks and len(found.posed.notes) == lost + masks


def test_instant_ngp_box_and_nerfstudio_transform(tmp_path: Path) -> None:
    turn = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0.5]]
    write_transforms(tmp_path, photographs(4), aabb_scale=4, scale=0.5, offset=[0.5, 0.5, 1], applied_transform=turn)
    posed = read_posed(tmp_path)
    assert posed.box is not None and posed.box[0].tolist() == [0, 0, -1] and posed.box[1] == 4
    assert posed.applied is not None and posed.applied.tolist() == [*turn, [0, 0, 0, 1]]


@pytest.mark.parametrize("place", ["sparse", "colmap/sparse/0", "dense/sparse", "dense/0/sparse"])
def test_places_of_colmap_models(tmp_path: Path, place: str) -> None:
    views = photographs(3)
    write_colmap(tmp_path, views, binary=True)
    (tmp_path / "sparse").rename(tmp_path / "written")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "written" / "0").rename(tmp_path / place)
    assert torch.allclose(open_photos(tmp_path, 64).cameras.c2w, views.cameras.c2w, atol=1e-5)


def test_largest_colmap_model_is_read(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 5)):
        write_colmap(tmp_path / name, photographs(count), binary=True)
    (tmp_path / "b" / "sparse" / "0").rename(tmp_path / "b" / "sparse" / "1")
    (tmp_path / "a" / "sparse" / "0").rename(tmp_path / "b" / "sparse" / "0")
    assert len(open_photos(tmp_path / "b", 64)) == len(open_photos(tmp_path / "b" / "sparse", 64)) == 5
    with refused(None, tmp_path / "a", "transforms.json"):
        read_posed(tmp_path / "a")


def test_photos_of_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    views = photographs(3)
    names = [f"/home/me/set/images/camera{k}/photo.HEIC" for k in range(3)]
    edit_transforms(
        write_transforms(tmp_path, views),
        lambda tree: [frame.update(file_path=name) for frame, name in zip(tree["frames"], names, strict=True)],
    )
    (tmp_path / "images" / "000.png").rename(tmp_path / "images" / "photo.png")
    with refused(None, tmp_path / "images" / "photo.png", "camera0", "camera1"):
        read_posed(tmp_path)
    for k, name in enumerate(("photo", "001", "002")):
        (tmp_path / "images" / f"camera{k}").mkdir()
        (tmp_path / "images" / f"{name}.png").rename(tmp_path / "images" / f"camera{k}" / "photo.png")
    assert (open_photos(tmp_path, 64).views().images - views.images).abs().max() < 0.01


@pytest.mark.parametrize("form", ["transforms", "without suffix", "COLMAP"])
def test_photo_names_ignore_case(tmp_path: Path, form: str) -> None:
    if form == "COLMAP":
        write_colmap(tmp_path, photographs(3), binary=False)
    else:
        write_transforms(tmp_path, photographs(3))
    if form == "without suffix":
        edit_transforms(tmp_path, lambda tree: tree["frames"][0].update(file_path="images/000"))
    (tmp_path / "images").rename(tmp_path / "Images")
    (tmp_path / "Images" / "000.png").rename(tmp_path / "Images" / "000.pnG")
    assert len(open_photos(tmp_path, 64)) == 3


@pytest.mark.parametrize("distortion", [(0.3, 0.05, 0.01, -0.01), (-0.2, 0.03, 0.0, 0.0)])
def test_distorted_photos_are_undistorted(tmp_path: Path, distortion: tuple[float, ...]) -> None:
    """The colour of each pixel is a function of the direction of its ray, in the photo and after the reader."""
    size, focal, centre = 96, 90.0, np.array([50.0, 45.0])

    def colour(x: Any, y: Any) -> Any:
        return np.stack([0.5 + 0.4 * np.sin(9 * x), 0.5 + 0.4 * np.cos(8 * y), 0.5 + 0.4 * np.sin(7 * (x + y))], -1)

    k1, k2, p1, p2 = distortion
    rows, columns = np.mgrid[:size, :size] + 0.5
    xd, yd = (columns - centre[0]) / focal, (rows - centre[1]) / focal
    x, y = xd, yd
    for _ in range(60):  # invert the lens
        r = x * x + y * y
        radial = 1 + k1 * r + k2 * r * r
        x = (xd - 2 * p1 * x * y - p2 * (r + 2 * x * x)) / radial
        y = (yd - p1 * (r + 2 * y * y) - 2 * p2 * x * y) / radial
    views = photographs(2)
    K = torch.tensor([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]]).float().expand(2, 3, 3)
    images = torch.from_numpy(colour(x, y)).float().expand(2, size, size, 3)
    written = Views(images, Cameras(views.cameras.c2w, Projection(K), size, size))
    names = ("k1", "k2", "p1", "p2")
    write_transforms(tmp_path / "a", written, **dict(zip(names, distortion, strict=True)))
    write_colmap(tmp_path / "b", written, binary=False, model=4, distortion=distortion)
    for name in "ab":
        found = open_photos(tmp_path / name, 256).views()
        fx, cx, cy = (float(found.cameras.K[0, i, j]) for i, j in ((0, 0), (0, 2), (1, 2)))
        expected = colour((columns - cx) / fx, (rows - cy) / fx)
        assert np.abs(found.images[0].numpy() - expected).max() < 0.03
    assert np.abs(images[0].numpy() - expected).max() > 0.1


def transforms(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_transforms(write_transforms(folder, photographs(4)), edit)


def colmap(name: str, edit: Callable[[bytes], bytes] = bytes, **options: Any) -> Callable[[Path], object]:
    """Return a function that writes a COLMAP model and changes its file `name`."""

    def write(folder: Path) -> None:
        path = write_colmap(folder, photographs(4), name.endswith(".bin"), **options) / "sparse" / "0" / name
        path.write_bytes(edit(path.read_bytes()))

    return write


def in_degrees(tree: dict[str, Any]) -> None:
    for frame in tree["frames"]:
        del frame["fl_x"], frame["fl_y"]
    tree["camera_angle_x"] = 45


HUGE = b"1 PINHOLE 1e200 1e200 90 90 50 50"
UNUSABLE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "model": (transforms(lambda tree: tree.update(camera_model="OPENCV_FISHEYE")), ["OPENCV_FISHEYE"]),
    "fisheye": (transforms(lambda tree: tree.update(is_fisheye=True)), ["OPENCV_FISHEYE"]),
    "size": (transforms(lambda tree: tree.update(w=30)), ["000.png", "16 x 30"]),
    "tiny": (transforms(lambda tree: [frame.update(fl_x=1e-300) for frame in tree["frames"]]), ["000.png"]),
    "degrees": (transforms(in_degrees), ["camera_angle_x=45"]),
    "shear": (transforms(lambda tree: tree["frames"][2]["transform_matrix"][0].__setitem__(0, 7.0)), ["2"]),
    "mirrored": (transforms(lambda tree: (m := tree["frames"][2]["transform_matrix"]).insert(0, m.pop(1))), ["2"]),
    "missing": (transforms(lambda tree: [frame.update(file_path="no") for frame in tree["frames"]]), ["no"]),
    "cut images": (colmap("images.bin", lambda data: data[:-5]), ["sparse/0"]),
    "huge camera": (colmap("cameras.txt", lambda data: re.sub(rb"(?m)^1 .*$", HUGE, data)), ["sparse/0", "finite"]),
    "fisheye camera": (colmap("cameras.bin", model=5, distortion=(0.1, 0, 0, 0)), ["OPENCV_FISHEYE"]),
}
"""Name -> function that writes an unusable folder, values in the message."""


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_refused(tmp_path: Path, name: str) -> None:
    write, values = UNUSABLE[name]
    write(tmp_path)
    with refused(None, *values):
        open_photos(tmp_path, 64).verify()


def test_colmap_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    write_colmap(tmp_path, photographs(4), binary=False)
    with (tmp_path / "sparse" / "0" / "points3D.txt").open("a") as file:
        file.write("2 nan 0 0 255 0 0 0.5 7 0\n3 0 1e200 0 255 0 0 0.5 7 0\n4 1 2 3 255 0 0 0.5 7 0\n")
    assert np.allclose(read_posed(tmp_path).points, [[0.1, 0.2, 0.3], [1, 2, 3]])


def test_exif_rotation_is_applied_where_the_camera_file_describes_upright_photos(tmp_path: Path) -> None:
    """Else the intrinsics are for the pixels as they are stored."""
    views = wide_views()
    write_transforms(tmp_path, views)
    for path in sorted((tmp_path / "images").iterdir()):
        with Image.open(path) as image:
            exif = image.getexif()
            exif[274] = 6  # rotate by 90 degrees clockwise
            image.save(path, exif=exif)
            assert (open_photos(tmp_path, 64).views([0]).images[0] - views.images[0]).abs().max() < 0.01
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    photos = open_photos(tmp_path, 64)
    photos.verify()
    assert (photos.views().images - views.images).abs().max() < 0.01


def test_common_scale_of_the_axes_is_removed(tmp_path: Path) -> None:
    views = photographs(4)
    scaled = views.cameras.c2w.clone()
    scaled[:, :3, :3] *= 3.0
    write_transforms(tmp_path, Views(views.images, Cameras(scaled, views.cameras.projection, 16, 16)))
    assert torch.allclose(open_photos(tmp_path, 64).cameras.c2w, views.cameras.c2w, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_models_have_limits(tmp_path: Path, binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    write_colmap(tmp_path, wide_views(), binary=binary)
    count = len(read_posed(tmp_path).files)
    monkeypatch.setattr("threedgen.data.posed.colmap.MAX_LINE", 400)  # keypoints in several parts
    if not binary:
        path = next(tmp_path.rglob("images.txt"))
        path.write_text(path.read_text().replace("\n\n", "\n" + "1.5 2.5 -1 " * 500 + "\n"))
    assert len(read_posed(tmp_path).files) == count
    monkeypatch.setattr("threedgen.data.posed.colmap.MAX_ROWS", count - 1)
    with refused(None, f"{count - 1}"):
        read_posed(tmp_path)
    if not binary:  # one camera many times
        monkeypatch.setattr("threedgen.data.posed.colmap.MAX_ROWS", count)
        path = next(tmp_path.rglob("cameras.txt"))
        path.write_text(path.read_text().splitlines()[-1] + "\n")
        path.write_text(path.read_text() * (count + 1))
        with refused(None, f"{count}"):
            read_posed(tmp_path)


def test_transforms_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are searched by the last parts of names of any length."""
    long = "b/" * 100_000
    edit_transforms(
        write_transforms(tmp_path, wide_views()),
        lambda tree: [frame.update(file_path=long + frame["file_path"]) for frame in tree["frames"]],
    )
    assert len(read_posed(tmp_path).files) == 6
    monkeypatch.setattr("threedgen.data.posed.reader.MAX_FRAMES", 5)
    with refused(None, "5"):
        read_posed(tmp_path)


def test_one_photo_has_no_matching_pixels(tmp_path: Path) -> None:
    assert matching_pixels(open_photos(write_transforms(tmp_path, photographs(1)), 64)) == []
