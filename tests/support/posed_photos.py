"""Writes views as photos with poses: transforms.json, or a COLMAP model, text or binary."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from threedgen.geometry.images import to_uint8, write_png
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views


def write_transforms(folder: Path, views: Views, **values: Any) -> Path:
    """Write images/ and transforms.json with the intrinsics of each frame; `values` are further keys of the file."""
    frames = []
    for k, (pose, K) in enumerate(zip(views.cameras.c2w.tolist(), views.cameras.K.tolist(), strict=True)):
        lens = {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        frames.append({"file_path": f"images/{k:03d}.png", "transform_matrix": pose} | lens)
        write_png(folder / "images" / f"{k:03d}.png", to_uint8(views.images[k]))
    size = {"w": views.cameras.width, "h": views.cameras.height}
    (folder / "transforms.json").write_text(json.dumps(size | {"frames": frames} | values))
    return folder


def edit_transforms(folder: Path, edit: Any) -> None:
    """Apply `edit` to the content of a transforms.json."""
    path = folder / "transforms.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def write_colmap(folder: Path, views: Views, binary: bool, model: int = 1, distortion: tuple[float, ...] = ()) -> Path:
    """Write images/ and sparse/0 with a camera for each image (model 1: PINHOLE, 4: OPENCV) and one point."""
    names = {0: "SIMPLE_PINHOLE", 1: "PINHOLE", 2: "SIMPLE_RADIAL", 3: "RADIAL", 4: "OPENCV", 5: "OPENCV_FISHEYE"}
    names[6] = "FULL_OPENCV"
    at, sparse = views.cameras, folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    w2c = np.linalg.inv(opencv_axes(at.c2w).double().numpy())
    cameras, images = [], []
    for k, (matrix, K) in enumerate(zip(w2c, at.K.double().tolist(), strict=True)):
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        focal = [K[0][0], K[1][1]] if model in (1, 4, 5, 6) else [K[0][0]]
        cameras.append((k + 1, model, at.width, at.height, (*focal, K[0][2], K[1][2], *distortion)))
        images.append((k + 7, (w, x, y, z, *matrix[:3, 3]), k + 1, f"{k:03d}.png"))
        write_png(folder / "images" / f"{k:03d}.png", to_uint8(views.images[k]))
    if not binary:
        lines = [f"{n} {names[m]} {w} {h} {' '.join(map(repr, p))}" for n, m, w, h, p in cameras]
        (sparse / "cameras.txt").write_text("# cameras\n" + "\n".join(lines) + "\n")
        rows = [f"{n} {' '.join(map(repr, map(float, p)))} {c} {name}\n" for n, p, c, name in images]
        (sparse / "images.txt").write_text("# images\n" + "\n".join(rows) + "\n")  # no keypoints: empty lines
        (sparse / "points3D.txt").write_text("# points\n1 0.1 0.2 0.3 255 0 0 0.5 7 0\n")
        return folder
    data = struct.pack("<Q", len(cameras))
    data += b"".join(struct.pack(f"<IiQQ{len(p)}d", n, m, w, h, *p) for n, m, w, h, p in cameras)
    (sparse / "cameras.bin").write_bytes(data)
    keypoint = struct.pack("<Qddq", 1, 3.0, 4.0, 1)
    rows = [struct.pack("<I7dI", n, *p, c) + name.encode() + b"\0" + keypoint for n, p, c, name in images]
    (sparse / "images.bin").write_bytes(struct.pack("<Q", len(images)) + b"".join(rows))
    point = struct.pack("<QQ3d3BdQII", 1, 1, 0.1, 0.2, 0.3, 255, 0, 0, 0.5, 1, 7, 0)
    (sparse / "points3D.bin").write_bytes(point)
    return folder
