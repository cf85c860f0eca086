from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import box_room
from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import tiny_model
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.warp import key_frames
from threedgen.systems.sample.mesh import MeshFrame, SourceMesh
from threedgen.systems.texture.frames import (
    Frames,
    auto_path,
    check_overlap,
    choose_keys,
    depth_of_mesh,
    interior,
    read_frames,
)
from threedgen.systems.texture.options import PathConfig, TextureConfig
from threedgen.systems.texture.windows import Window, check_model, plan

LARGE, SIZE, COUNT = (48, 64), (24, 32), 10


def rig(**values: Any) -> PathConfig:
    return PathConfig.model_validate({"height": SIZE[0], "width": SIZE[1], **values})


def read_scan(folder: Path, prompt: str = "", frame: MeshFrame | None = None, **values: Any) -> Any:
    made = rig(**{"scannet": str(folder), "every": 1} | values)
    prior = {"name": "mvdiffusion"}
    config = TextureConfig.model_validate({"task": "texture", "prior": prior, "rig": made, "prompt": prompt})
    return read_frames(config, made, None, frame or MeshFrame())


def frames(count: int = 24) -> Frames:
    at = box_room.look(count, SIZE)
    return Frames(at, depth_of_mesh(box_room.scene(), at), ("a",) * count, tuple(map(str, range(count))))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    at = box_room.look(48, LARGE).select(range(COUNT))
    depth = depth_of_mesh(box_room.scene(), at)
    for name in ("depth", "pose", "intrinsic", "prompt"):
        (tmp_path / name).mkdir(parents=True)
    K = np.eye(4)
    K[:3, :3] = at.K[0].numpy()
    K[:2, 2] -= 0.5
    np.savetxt(tmp_path / "intrinsic" / "intrinsic_depth.txt", K)
    for n in range(COUNT):
        Image.fromarray(np.round(1000 * depth[n].numpy()).astype(np.uint16)).save(tmp_path / "depth" / f"{n}.png")
        np.savetxt(tmp_path / "pose" / f"{n}.txt", opencv_axes(at.c2w[n]).numpy())
        (tmp_path / "prompt" / f"{n}.txt").write_text(f"a room {n}\nmore\n")
    return tmp_path


def test_auto_path_stands_in_the_free_interior() -> None:
    room = box_room.scene()
    middle, free = interior(room)
    assert (np.abs(middle[:2]) < box_room.SIZE[:2] / 2).all() and 0.8 < middle[2] < 1.8 and free > 0.7
    at = auto_path(room, rig(frames=12))
    assert bool((depth_of_mesh(room, at) > 0.1).all())  # walls on all sides, nowhere through one
    high = room.vertices[room.faces][..., 2].min(1) == room.vertices[:, 2].max()
    assert 0.8 < interior(SourceMesh(room.vertices, room.faces[~high]))[0][2] < 1.8  # without a ceiling
    floor = SourceMesh(np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0]], np.float32), np.array([[0, 1, 2]]))
    with refused("rig.file", "rig.file=FILE"):
        interior(floor)


def test_keys_end_with_the_last_frame_and_gaps_are_noted_or_refused() -> None:
    taken = frames(48)
    keys = choose_keys(taken, 0.65)
    assert keys[:-1] == key_frames(taken.depth, taken.cameras, 0.65) and keys[-1] == 47 and 8 < len(keys) < 24
    assert check_overlap(taken, keys, 0.3, "rig.file") == []
    with refused("rig.file", "30%"):
        check_overlap(frames(3), [0, 1, 2], 0.3, "rig.file")
    (note,) = check_overlap(frames(24), [0, 1, 12, 13], 0.3, "rig.file")
    assert "1 of 3" in note and "1 and 12" in note


def test_scannet_frames_are_those_of_the_room_and_turn_with_the_mesh(scan: Path) -> None:
    found, notes = read_scan(scan)
    assert not notes and found.keys is None and found.names == tuple(map(str, range(COUNT)))
    assert found.prompts[3] == "a room 3"
    at = box_room.look(48, LARGE).select(range(COUNT)).with_size(*SIZE)
    torch.testing.assert_close(found.cameras.c2w, at.c2w)
    torch.testing.assert_close(found.cameras.K, at.K)
    off = (found.depth - depth_of_mesh(box_room.scene(), at)).abs()
    assert float(off.median()) < 0.05
    frame, room = MeshFrame("+y", "+z", scale=0.01), box_room.scene()
    turned = SourceMesh((room.vertices @ frame.rotation.T).astype(np.float32), room.faces)
    found, _ = read_scan(scan, frame=frame)
    assert float((found.depth - depth_of_mesh(turned, found.cameras)).abs().median()) < 0.05


def test_scannet_frame_step_and_key_frames(scan: Path) -> None:
    assert read_scan(scan, every=3)[0].names == ("0", "3", "6", "9")
    (scan / "key_frame_0.6.txt").write_text("0\n4\n9\n")
    found, _ = read_scan(scan, every=3, prompt="a red room")
    assert found.names == ("0", "3", "4", "6", "9") and found.keys == (0, 2, 4)
    assert set(found.prompts) == {"a red room"}


def test_frames_without_pose_or_depth_are_left_out(scan: Path) -> None:
    np.savetxt(scan / "pose" / "2.txt", np.full((4, 4), -np.inf))
    (scan / "pose" / "5.txt").unlink()
    (scan / "depth" / "9.png").unlink()
    Image.fromarray(np.zeros(LARGE, np.uint16)).save(scan / "depth" / "7.png")
    found, notes = read_scan(scan)
    assert found.names == ("0", "1", "3", "4", "6", "8")
    assert all(part in note for part, note in zip((": 2, 5, 9", ": 7"), notes, strict=True))


def test_inverted_poses_are_refused(scan: Path) -> None:
    for path in (scan / "pose").iterdir():
        np.savetxt(path, np.linalg.inv(np.loadtxt(path)))
    with refused("rig.scannet", "poses=w2c"):
        read_scan(scan)
    moved, _ = read_scan(scan, poses="w2c")
    torch.testing.assert_close(moved.cameras.c2w, box_room.look(48, LARGE).c2w[:COUNT], atol=1e-5, rtol=0)


def test_missing_prompts_and_key_frames_are_refused(scan: Path) -> None:
    (scan / "prompt" / "3.txt").unlink()
    with refused("prompt", "prompt=TEXT"):
        read_scan(scan)
    (scan / "key_frame_0.6.txt").write_text("0\n99\n")
    with refused("rig.scannet", 99):
        read_scan(scan)


def test_depth_of_another_kind_or_shape_is_refused(scan: Path) -> None:
    with refused("rig.width", 32, 48):
        read_scan(scan, width=48)
    Image.fromarray(np.zeros(LARGE, np.uint8)).save(scan / "depth" / "3.png")
    with refused("rig.scannet", "16-bit"):
        read_scan(scan)
    for path in (scan / "depth").iterdir():
        Image.fromarray(np.zeros(LARGE, np.uint16)).save(path)
    with refused("rig.scannet", "0 of 10", "depth"):
        read_scan(scan)


def test_windows_share_key_frames_and_frames_between_have_keys_on_both_sides() -> None:
    windows = plan(range(10), PathConfig(views=6))
    assert windows == [Window((0, 1, 2, 3, 4, 5)), Window((4, 5, 6, 7, 8, 9), (4, 5))]
    assert plan(range(5), PathConfig(views=3))[1:] == [Window((2, 3, 4), (2,))]
    assert sorted(n for window in windows for n in window.new) == list(range(10))
    windows = plan([0, 2, 6, 7], PathConfig(views=4))
    assert windows[0] == Window((0, 2, 6, 7))
    assert windows[1:] == [Window((0, 1, 2), (0, 2)), Window((2, 3, 4, 6), (2, 6)), Window((2, 5, 6), (2, 6))]


def test_odd_numbers_of_tokens_are_refused_if_they_form_pairs() -> None:
    model, odd = tiny_model("depth"), PathConfig(height=20, width=12)  # 5 x 3 tokens of 4 pixels
    check_model(model, odd)
    model.multiview.encoding = "reference"
    with refused("rig.width", "20 x 12", 16):
        check_model(model, odd)
    even = PathConfig(height=40, width=24)
    check_model(model, even)
    model.draft = 0.5
    with refused("rig.width", "40 x 24", "half", 32):
        check_model(model, even)
