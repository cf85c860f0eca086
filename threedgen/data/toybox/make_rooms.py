"""The task "make-toy-rooms": toy rooms as folders that are read like Matterport3D and ScanNet.

    RUN/mp3d_skybox/{train,test}.npy, SCENE/...    panoramas: skyboxes and captions (``threedgen.data.matterport``)
    RUN/scannet/{train,test}/SCENE/...             walks: frames, depth, poses, captions (``threedgen.data.scannet``)
    RUN/scannet/test/SCENE/room.glb                the mesh of the room, in metres

A scene is written whole or not at all, so a killed run goes on with those that are missing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np

from threedgen.data.matterport import CAPTIONS, FACES, FOLDER, STEP
from threedgen.data.options import RoomPanoramasConfig, RoomPathsConfig, SceneSplit
from threedgen.geometry.depth_file import write_depth
from threedgen.geometry.images import to_uint8
from threedgen.geometry.warp import of_cameras
from threedgen.run.arrays import Array
from threedgen.run.disk import whole_folder, write_atomic
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.train.task import Task, run_task

from .options import MakeToyRoomsConfig
from .room_mesh import room_glb
from .room_scenes import RoomPanoramas, RoomWalk, RoomWalks

SPLITS: tuple[SceneSplit, ...] = ("train", "test")
CHUNK = 16
"""Frames of a walk that are rendered together."""
SCANNET = "scannet"
"""Of the folder of walks, in that data set's layout."""
NAME = "skybox"
"""Of the picture in a scene's folder; each has one panorama."""


class Job(NamedTuple):
    """One scene to make."""

    kind: str
    split: SceneSplit
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.split}-{self.number:05d}"


def make(task: Task) -> None:
    """Makes the scenes that are not there yet. Raises Stopped after Ctrl-C."""
    config, every = task.config, list(jobs(task.config))
    with Interrupts() as interrupts, Count("scenes", len(every), task.quiet) as count:
        for job in every:
            interrupts.heed()
            target = place(task.folder, job)
            if not target.is_dir():
                with whole_folder(target) as folder:
                    (write_panorama if job.kind == "panorama" else write_walk)(folder, config, job)
            count.add(1, job.name)
    for split in SPLITS:
        write_index(task.folder / FOLDER, split, [job for job in every if job[:2] == ("panorama", split)])
    task.summarise(scenes=len(every))


run = partial(run_task, make, files=(FOLDER, SCANNET), again=True)


def jobs(config: MakeToyRoomsConfig) -> Iterator[Job]:
    """All scenes in the order in which they are made."""
    for split in SPLITS:
        yield from (Job("panorama", split, number) for number in range(getattr(config, f"{split}_panoramas")))
        yield from (Job("walk", split, number) for number in range(getattr(config, f"{split}_walks")))


def place(root: Path, job: Job) -> Path:
    """The folder of a scene."""
    return root / FOLDER / job.name if job.kind == "panorama" else root / SCANNET / job.split / job.name


def panoramas(config: MakeToyRoomsConfig, split: SceneSplit) -> RoomPanoramas:
    """The rooms whose skyboxes are written."""
    count = max(1, getattr(config, f"{split}_panoramas"))
    return RoomPanoramas(RoomPanoramasConfig(count=count, supersample=config.supersample), config.seed, split)


def walk(config: MakeToyRoomsConfig, split: SceneSplit, number: int) -> RoomWalk:
    """The walk that is written."""
    c = config
    options = RoomPathsConfig(
        count=number + 1, height=c.height, width=c.width, fov=c.fov, overlap=c.overlap, supersample=c.supersample
    )
    return RoomWalks(options, c.seed, split, c.frames)[number]


def write_panorama(folder: Path, config: MakeToyRoomsConfig, job: Job) -> None:
    """Six faces and eight captions. Raises OSError."""
    source = panoramas(config, job.split)
    (folder / FACES).mkdir()
    (folder / CAPTIONS).mkdir()
    for number, face in enumerate(source.skybox(job.number, config.skybox_size)):
        (folder / face_path(number)).write_bytes(jpeg(to_uint8(face)))
    for number, text in enumerate(source.directions(job.number)):
        (folder / CAPTIONS / f"{NAME}_{number * STEP}.txt").write_text(f"{text}\n", encoding="utf-8")


def face_path(number: int) -> str:
    """Of a face, in the folder of its scene."""
    return f"{FACES}/{NAME}_skybox{number}_sami.jpg"


def write_index(folder: Path, split: SceneSplit, made: list[Job]) -> None:
    """The list of the panoramas of a split; none of none. Raises OSError."""
    if made:
        data = io.BytesIO()
        np.save(data, np.array([[f"{job.name}/{face_path(number)}" for number in range(6)] for job in made]))
        write_atomic(folder / f"{split}.npy", data.getvalue())


def write_walk(folder: Path, config: MakeToyRoomsConfig, job: Job) -> None:
    """Frames, key frames and, of a test room, the mesh. Raises OSError."""
    made = walk(config, job.split, job.number)
    for part in ("color", "depth", "pose", "prompt", "intrinsic"):
        (folder / part).mkdir()
    K, _ = of_cameras(made.cameras.select([0]))
    matrix = np.eye(4)
    matrix[:3, :3] = K[0]
    (folder / "intrinsic" / "intrinsic_depth.txt").write_text(rows(matrix), encoding="utf-8")
    for start in range(0, made.length, CHUNK):
        write_frames(folder, made, range(start, min(start + CHUNK, made.length)))
    (folder / "key_frame_0.6.txt").write_text("".join(f"{number}\n" for number in made.keys), encoding="utf-8")
    np.save(folder / "valid_frames.npy", np.array(made.frames))
    if job.split == "test":
        (folder / "room.glb").write_bytes(room_glb(made.room))


def write_frames(folder: Path, made: RoomWalk, numbers: range) -> None:
    """Some frames of a walk. Raises OSError."""
    scene = made.views(numbers)
    assert scene.depth is not None
    poses = of_cameras(scene.views.at)[1].double().numpy()
    for k, number in enumerate(numbers):
        (folder / "color" / f"{number}.jpg").write_bytes(jpeg(to_uint8(scene.views.images[k])))
        write_depth(folder / "depth" / f"{number}.png", scene.depth[k].numpy())
        (folder / "pose" / f"{number}.txt").write_text(rows(poses[k]), encoding="utf-8")
        (folder / "prompt" / f"{number}.txt").write_text(f"{scene.captions[k]}\n", encoding="utf-8")


def rows(matrix: Array) -> str:
    """A matrix, each row in a line."""
    return "".join(" ".join(f"{x:.9g}" for x in row) + "\n" for row in matrix)


def jpeg(pixels: Array) -> bytes:
    """Encodes uint8 pixels (H,W,3), colours as fine as light."""
    encoded: bytes = iio.imwrite("<bytes>", pixels, extension=".jpg", quality=95, subsampling=0)
    return encoded
