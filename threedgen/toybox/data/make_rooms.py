"""Task "make-toy-rooms": write toy rooms as folders in the layouts of Matterport3D and ScanNet.

    RUN/mp3d_skybox/{train,test}.npy               paths of the skybox images of the panoramas of a split
    RUN/mp3d_skybox/SCENE/...                      panorama: skybox images, captions (``threedgen.data.matterport``)
    RUN/scannet/{train,test}/SCENE/...             walk: frames, depth, poses, captions (``threedgen.data.scannet``)
    RUN/scannet/test/SCENE/room.glb                room mesh in metres, y up

A walk is a sequence of frames of a camera that moves through a room. Each scene (panorama or walk) is written
atomically, so an interrupted run resumes with the missing scenes.
"""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np

from threedgen.data.matterport import CAPTIONS, FACES, FOLDER, YAW_STEP
from threedgen.data.options import SceneSplit
from threedgen.geometry.images import to_uint8, write_depth
from threedgen.geometry.warp import to_opencv
from threedgen.run.arrays import Array
from threedgen.run.disk import atomic_folder, write_atomic
from threedgen.toybox.options import MakeToyRoomsConfig, RoomPanoramasConfig, RoomPathsConfig
from threedgen.train.task import Task, run_task

from .room_scenes import RoomPanoramas, RoomWalk, glb, room_triangles, room_walks

SPLITS: tuple[SceneSplit, ...] = ("train", "test")
SKYBOX_SIZE = 256  # side of a skybox image in pixels
CHUNK = 16  # number of frames of a walk that are rendered together
SCANNET = "scannet"
NAME = "skybox"  # first part of the file names of a panorama


class Job(NamedTuple):
    """Room scene to write. ``kind`` is "panorama" or "walk" (frames of a moving camera).

    ``number`` is the number of the scene among those of the same kind and split, from 0.
    """

    kind: str
    split: SceneSplit
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.split}-{self.number:05d}"


def make(task: Task) -> None:
    config, all_jobs = task.config, list(jobs(task.config))
    with task.track_progress("scenes", len(all_jobs)) as on_step:
        for job in all_jobs:
            on_step()
            kind = Path(FOLDER) if job.kind == "panorama" else Path(SCANNET, job.split)
            target = task.folder / kind / job.name
            if not target.is_dir():
                with atomic_folder(target) as folder:
                    (write_panorama if job.kind == "panorama" else write_walk)(folder, config, job)
    for split in SPLITS:
        names = [job.name for job in all_jobs if job[:2] == ("panorama", split)]
        if names:
            index = io.BytesIO()
            np.save(index, np.array([[f"{name}/{face_path(number)}" for number in range(6)] for name in names]))
            write_atomic(task.folder / FOLDER / f"{split}.npy", index.getvalue())
    task.summarise(scenes=len(all_jobs))


run = partial(run_task, make, files=(FOLDER, SCANNET), rerun_finished=True)


def jobs(config: MakeToyRoomsConfig) -> Iterator[Job]:
    for split in SPLITS:
        yield from (Job("panorama", split, number) for number in range(getattr(config, f"{split}_panoramas")))
        yield from (Job("walk", split, number) for number in range(getattr(config, f"{split}_walks")))


def write_panorama(folder: Path, config: MakeToyRoomsConfig, job: Job) -> None:
    """Write the panorama of a toy room to the empty ``folder``, in the layout of a scene of Matterport3D.

    ``job`` has the split and number of the room. The files are six skybox images (JPEG) and eight captions, of views
    every 45 degrees. Raises OSError if a file cannot be written.
    """
    source = RoomPanoramas(RoomPanoramasConfig(), config.seed, job.split)
    (folder / FACES).mkdir()
    (folder / CAPTIONS).mkdir()
    for number, face in enumerate(source.skybox(job.number, SKYBOX_SIZE)):
        (folder / face_path(number)).write_bytes(jpeg(to_uint8(face)))
    for number, text in enumerate(source.directions(job.number)):
        (folder / CAPTIONS / f"{NAME}_{number * YAW_STEP}.txt").write_text(f"{text}\n", encoding="utf-8")


def face_path(number: int) -> str:
    return f"{FACES}/{NAME}_skybox{number}_sami.jpg"


def write_walk(folder: Path, config: MakeToyRoomsConfig, job: Job) -> None:
    """Write the scene of a camera walk through a room to the empty ``folder``, in the layout of ScanNet.

    ``job`` has the split and number of the room. The scene has frames (image, depth, pose, caption), intrinsics, and
    the numbers of the key frames (frames far enough apart to serve as views of a training example). In the test split
    it also has the mesh of the room.
    """
    options = RoomPathsConfig(count=job.number + 1, height=config.height, width=config.width)
    room_walk = room_walks(options, config.seed, job.split, config.frames)[job.number]
    for part in ("color", "depth", "pose", "prompt", "intrinsic"):
        (folder / part).mkdir()
    K, _ = to_opencv(room_walk.cameras.select([0]))
    matrix = np.eye(4)
    matrix[:3, :3] = K[0]
    (folder / "intrinsic" / "intrinsic_depth.txt").write_text(rows(matrix), encoding="utf-8")
    for start in range(0, room_walk.length, CHUNK):
        write_frames(folder, room_walk, range(start, min(start + CHUNK, room_walk.length)))
    (folder / "key_frame_0.6.txt").write_text("".join(f"{number}\n" for number in room_walk.keys), encoding="utf-8")
    np.save(folder / "valid_frames.npy", np.array(room_walk.frames))
    if job.split == "test":
        corners, colours, _ = room_triangles(room_walk.room)
        (folder / "room.glb").write_bytes(glb(corners, colours))


def write_frames(folder: Path, room_walk: RoomWalk, numbers: range) -> None:
    scene = room_walk.views(numbers)
    assert scene.depth is not None
    poses = to_opencv(scene.views.cameras)[1].double().numpy()
    for k, number in enumerate(numbers):
        (folder / "color" / f"{number}.jpg").write_bytes(jpeg(to_uint8(scene.views.images[k])))
        write_depth(folder / "depth" / f"{number}.png", scene.depth[k].numpy())
        (folder / "pose" / f"{number}.txt").write_text(rows(poses[k]), encoding="utf-8")
        (folder / "prompt" / f"{number}.txt").write_text(f"{scene.captions[k]}\n", encoding="utf-8")


def rows(matrix: Array) -> str:
    return "".join(" ".join(f"{x:.9g}" for x in row) + "\n" for row in matrix)


def jpeg(pixels: Array) -> bytes:
    return iio.imwrite("<bytes>", pixels, extension=".jpg", quality=95, subsampling=0)
