"""A folder in ScanNet's layout, made of the room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.geometry.poses import opencv_axes
from threedgen.systems.texture.options import TextureConfig
from threedgen.systems.texture.scannet import read_scannet
from threedgen.systems.texture.scene import Coordinates
from threedgen.systems.texture.shots import depth_of_mesh
from threedgen.systems.texture.task import take_shots

LARGE, SIZE, COUNT = (48, 64), (24, 32), 10


def write(folder: Path) -> Path:
    at = box_room.look(48, LARGE).select(range(COUNT))
    depth = depth_of_mesh(box_room.scene(), at)
    for name in ("depth", "pose", "intrinsic", "prompt"):
        (folder / name).mkdir(parents=True)
    K = np.eye(4)
    K[:3, :3] = at.K[0].numpy()
    K[:2, 2] -= 0.5
    np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", K)
    for n in range(COUNT):
        Image.fromarray(np.round(1000 * depth[n].numpy()).astype(np.uint16)).save(folder / "depth" / f"{n}.png")
        np.savetxt(folder / "pose" / f"{n}.txt", opencv_axes(at.c2w[n]).numpy())
        (folder / "prompt" / f"{n}.txt").write_text(f"a room {n}\nmore\n")
    return folder


def config(folder: Path, **values: Any) -> TextureConfig:
    default = {"height": SIZE[0], "width": SIZE[1], "every": 1}
    return TextureConfig(task="texture", scannet=str(folder), **(default | values))


def test_frames_are_those_of_the_room(tmp_path: Path) -> None:
    shots, notes = read_scannet(config(write(tmp_path)))
    assert not notes and shots.keys is None and shots.names == tuple(map(str, range(COUNT)))
    assert shots.prompts[3] == "a room 3"
    at = box_room.look(48, LARGE).select(range(COUNT)).with_size(*SIZE)
    torch.testing.assert_close(shots.cameras.c2w, at.c2w)
    torch.testing.assert_close(shots.cameras.K, at.K)
    off = (shots.depth - depth_of_mesh(box_room.scene(), at)).abs()
    assert float(off.median()) < 0.05


def test_every_and_key_frames(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_scannet(config(tmp_path, every=3))[0].names == ("0", "3", "6", "9")
    (tmp_path / "key_frame_0.6.txt").write_text("0\n4\n9\n")
    shots, _ = read_scannet(config(tmp_path, every=3, prompt="a red room"))
    assert shots.names == ("0", "3", "4", "6", "9") and shots.keys == (0, 2, 4)
    assert set(shots.prompts) == {"a red room"}
    (tmp_path / "key_frame_0.6.txt").write_text("0\n99\n")
    with pytest.raises(ConfigError, match="scannet: .*without depth: 99"):
        read_scannet(config(tmp_path))


def test_lost_poses_and_blind_frames_are_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    np.savetxt(tmp_path / "pose" / "2.txt", np.full((4, 4), -np.inf))
    (tmp_path / "pose" / "5.txt").unlink()
    (tmp_path / "depth" / "9.png").unlink()
    Image.fromarray(np.zeros(LARGE, np.uint16)).save(tmp_path / "depth" / "7.png")
    notes = list[str]()
    shots = take_shots(config(tmp_path), None, Coordinates(), notes)
    assert shots.names == ("0", "1", "3", "4", "6", "8")
    assert "1 of 10 frames have no depth and were left out: 9" in notes[0]
    assert "2 of 9 frames have no pose" in notes[1] and "left out: 7" in notes[2]


def test_inverted_poses(tmp_path: Path) -> None:
    write(tmp_path)
    for path in (tmp_path / "pose").iterdir():
        np.savetxt(path, np.linalg.inv(np.loadtxt(path)))
    for every in (1, 3):  # slowly and fast
        with pytest.raises(ConfigError, match="scannet: .*Set poses=w2c"):
            read_scannet(config(tmp_path, every=every))
    moved = take_shots(config(tmp_path, poses="w2c"), None, Coordinates(), [])
    torch.testing.assert_close(moved.cameras.c2w, box_room.look(48, LARGE).c2w[:COUNT], atol=1e-5, rtol=0)


def broken(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("depth/3.png", b"no", "scannet: .*cannot be read"),
        ("pose/3.txt", b"1 2 3", "scannet: .*16 numbers"),
        ("pose/3.txt", b"2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "scannet: .*3.txt is not rigid"),
        ("intrinsic/intrinsic_depth.txt", None, "scannet: .*is missing"),
        ("intrinsic/intrinsic_depth.txt", b"0 " * 16, "scannet: .*no matrix of intrinsics"),
        ("prompt/3.txt", None, "prompt: .*prompt=TEXT"),
    ],
)
def test_files_that_are_broken(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    write(tmp_path)
    broken(tmp_path, name, content)
    with pytest.raises(ConfigError, match=problem):
        read_scannet(config(tmp_path))


def test_depth_of_another_kind_or_shape(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match="width: .*try 32"):
        read_scannet(config(tmp_path, width=48))
    Image.fromarray(np.zeros(LARGE, np.uint8)).save(tmp_path / "depth" / "3.png")
    with pytest.raises(ConfigError, match="scannet: .*16-bit"):
        read_scannet(config(tmp_path))
    for path in (tmp_path / "depth").iterdir():
        Image.fromarray(np.zeros(LARGE, np.uint16)).save(path)
    with pytest.raises(ConfigError, match="scannet: 0 of 10 frames know the depth .*: look into .*depth"):
        read_scannet(config(tmp_path))
