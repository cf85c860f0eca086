"""A folder of small meshes with captions: good ones, and one of each kind that is left out."""

import json
from pathlib import Path

import numpy as np
import trimesh

from threedgen.data.assets.shards import add_asset, checksum, new_shard
from threedgen.geometry.images import png

GOOD = {"ball.obj": "a grey ball", "box.glb": "a red box", "sub/plate.ply": "a blue plate"}


def make_assets(folder: Path, more: int = 0) -> Path:
    """Three good meshes (``GOOD``), ``more`` red boxes, and their captions.csv; returns the folder."""
    (folder / "sub").mkdir(parents=True)
    trimesh.creation.icosphere(subdivisions=1).export(folder / "ball.obj")
    box((1, 2, 3)).export(folder / "box.glb")
    plate = trimesh.creation.box((2, 2, 0.1))
    plate.visual.vertex_colors = [0, 0, 255, 255]
    plate.export(folder / "sub" / "plate.ply")
    told = dict(GOOD)
    for number in range(more):
        told[f"box{number}.glb"] = f"box number {number}"
        box((1, 1 + number, 1)).export(folder / f"box{number}.glb")
    captions(folder, told)
    return folder


def box(sides: tuple[float, float, float]) -> trimesh.Trimesh:
    made = trimesh.creation.box(sides)
    made.visual.vertex_colors = [255, 0, 0, 255]
    return made


def captions(folder: Path, told: dict[str, str]) -> None:
    lines = (f'{file},"{caption}"\n' for file, caption in told.items())
    (folder / "captions.csv").write_text("file,caption\n" + "".join(lines))


def add_bad(folder: Path) -> None:
    """Meshes that are broken, empty, enormous, without a caption; captions without a mesh, and empty."""
    (folder / "broken.glb").write_bytes((folder / "box.glb").read_bytes()[:300])
    (folder / "empty.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    (folder / "enormous.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nelement face 6000000\nend_header\n"
    )
    box((1, 1, 1)).export(folder / "silent.glb")
    with (folder / "captions.csv").open("a") as file:
        file.write("broken.glb,a\nempty.ply,b\nenormous.ply,c\nlost.glb,d\nsilent.glb,\nbox.glb,again\n")


def shows(pixels: np.ndarray) -> float:
    """The share of a picture (H, W, 4) in which there is something."""
    return float((pixels[..., 3] > 0.5).mean())


def write_shard(folder: Path, name: str | None = None) -> Path:
    """Write a shard of one asset and an index.json that calls it by its name, or by `name`; return its path."""
    poses = np.tile(np.eye(4), (2, 1, 1)).tolist()
    with new_shard(folder / "shard-00000.tar") as tar:
        add_asset(tar, "a", {"c2w": poses, "fov": [0.7, 0.7]}, [png(np.full((16, 16, 3), 128, np.uint8))] * 2)
    asset = {"name": "a", "file": "a.glb", "caption": "a square", "notes": []}
    shard = checksum(folder / "shard-00000.tar") | {"assets": [asset]} | ({"file": name} if name else {})
    (folder / "index.json").write_text(json.dumps({"azimuths": 2, "rings": 1, "shards": [shard]}))
    return folder / "shard-00000.tar"
