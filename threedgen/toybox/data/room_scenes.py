"""Training sources of panoramas and camera walks in toy rooms (``data.scene_views.SceneSource``), and room meshes.

A walk is a sequence of frames of a camera that moves through a room.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from math import radians, tan

import numpy as np
import torch
import trimesh

from threedgen.data.options import SceneSplit
from threedgen.data.scene_views import SceneViews, WalkScenes
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import to_linear
from threedgen.geometry.panorama import SKYBOX, cameras, ring, rotation
from threedgen.geometry.poses import square_pixels
from threedgen.geometry.views import Views
from threedgen.geometry.warp import key_frames
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.options import RoomPanoramasConfig, RoomPathsConfig
from threedgen.toybox.world.furnishing import FREE_RADIUS, HALF_WIDTH, HEIGHT, Room, furnish_from
from threedgen.toybox.world.rooms import EYE_POSITION, YAW_STEP, Rooms, describe_view, look_c2w, render_rooms

THICKNESS = 0.01
"""Tolerance of `room_triangles` in metres: a triangle is inside a room if its centroid is less than this distance
behind the walls, the floor and the ceiling."""
CAPTION_PIXELS = 32  # width in pixels of the label images from which captions are written
KEY_WIDTH = 32  # width in pixels of the depth images from which key frames are selected
OVERLAP = 0.6  # minimum overlap of consecutive key frames, as a fraction of the pixels
FRAMES_PER_KEY = 9
"""Length of a walk in frames, divided by the number of views of a training example. These views are key frames of the
walk, about six frames apart."""


def _rooms(seed: int, split: SceneSplit, clutter: float) -> Rooms:
    return Rooms(seed, "train" if split == "train" else "held-out", clutter)


def render_scene_views(room: Room, at: Cameras, rng: Sequence[np.random.Generator], depth: bool = False) -> SceneViews:
    """Render views of a room from the V cameras ``at``, with a caption for each view.

    ``rng`` has V generators, one for the random wording of each caption. If ``depth``, the result also has depth maps
    (V, H, W) along the viewing axis in metres, else its depth is None.
    """
    rgb, z, _ = render_images(room, at, 2, depth)
    labels = render_images(room, _resized(at, CAPTION_PIXELS), 1, True)[2]
    texts = tuple(describe_view(room, label, one) for label, one in zip(labels, rng, strict=True))
    return SceneViews(Views(torch.from_numpy(rgb), at), texts, torch.from_numpy(z) if depth else None)


def _resized(at: Cameras, width: int) -> Cameras:
    return at.with_size(2 * max(1, round(width * at.height / at.width / 2)), width)


def render_images(room: Room, at: Cameras, supersample: int, with_gbuffer: bool) -> tuple[Array, Array, Array]:
    """Render views of a room from the V cameras ``at``, as crops from the centre of square images.

    The height H and the width W of the cameras must therefore be both even or both odd.

    Args:
        supersample: number of rays per pixel along each axis.
        with_gbuffer: also render depth and labels. Otherwise these two arrays are empty.

    Returns:
        rgb (V, H, W, 3) in [0, 1], depth (V, H, W) along the viewing axis in metres, and integer labels (V, H, W):
        k + 1 for the item ``room.items[k]``, ``len(room.items)`` + 1 for the bare room (walls, floor, ceiling, lamp).
    """
    side = max(at.height, at.width)
    focal = at.K[:, 1, 1].double().numpy()
    fov = 2 * np.arctan(0.5 * side / focal)
    result = render_rooms([room], np.zeros(len(at), np.int64), at.c2w.numpy(), fov, side, supersample, with_gbuffer)
    top, left = (side - at.height) // 2, (side - at.width) // 2
    crop = (slice(None), slice(top, top + at.height), slice(left, left + at.width))
    if not with_gbuffer:
        return np.ascontiguousarray(result.rgb[crop]), result.depth, result.label
    # convert depth along the ray to z depth
    offset = np.arange(side) + 0.5 - side / 2
    slope = np.hypot(offset[:, None], offset) / focal[:, None, None]
    depth = (result.depth / np.hypot(slope, 1)).astype(np.float32)
    rgb, depth, label = (np.ascontiguousarray(image[crop]) for image in (result.rgb, depth, result.label))
    return rgb, depth, label


class RoomPanoramas:
    """Source of panoramas, one per toy room. `scene(index)` renders the panorama of room ``index``, with captions.

    A panorama is a set of ``config.views`` horizontal views from one point at evenly spaced yaws. Yaws are in degrees,
    0 looks along +x, and they grow to the right. The first yaw is a random multiple of 45 in the training split, and 0
    in the test split.
    """

    def __init__(self, config: RoomPanoramasConfig, seed: int = 0, split: SceneSplit = "train") -> None:
        self.options, self.rooms, self.split = config, _rooms(seed, split, config.clutter), split
        self.n_view = config.views

    def __len__(self) -> int:
        return self.options.count

    def describe(self) -> str:
        o = self.options
        which = f"seed {self.rooms.seed}, {self.split}, clutter {o.clutter:g}"
        return f"panoramas of toy rooms, {which}, {o.views} of {o.size} px, {o.fov:g} deg"

    def first_yaw(self, index: int) -> int:
        """Return the yaw of the first view of room ``index``, in degrees to the right of +x (clockwise from above)."""
        return YAW_STEP * int(self.rooms.rng(index, 3).integers(360 // YAW_STEP)) if self.split == "train" else 0

    def scene(self, index: int) -> SceneViews:
        yaw = radians(self.first_yaw(index))
        o = self.options
        at = cameras(ring(self.n_view, yaw), radians(o.fov), o.size, o.size, EYE_POSITION.tolist())
        rng = [self.rooms.rng(index, 10 + number) for number in range(self.n_view)]
        return render_scene_views(self.rooms.room(index), at, rng)

    def skybox(self, index: int, size: int) -> Array:
        """Render the skybox of room ``index``: six images (6, size, size, 3) in [0, 1], each 90 degrees wide.

        The images are in the order of Matterport3D: first the view upwards, then horizontal views at the yaws 270, 0,
        90 and 180 degrees to the right of +x, last the view downwards. The camera of the view upwards or downwards is
        that of yaw 270, tilted by 90 degrees.
        """
        R = torch.stack([rotation(*angles) for angles in SKYBOX])
        at = cameras(R, radians(90), size, size, EYE_POSITION.tolist())
        return render_images(self.rooms.room(index), at, 2, False)[0]

    def directions(self, index: int) -> list[str]:
        """Return captions of eight horizontal views, 90 degrees wide, of room ``index``.

        Their yaws are 0, 45, ..., 315 degrees to the right of +x (clockwise seen from above).
        """
        at = cameras(ring(8), radians(90), CAPTION_PIXELS, CAPTION_PIXELS, EYE_POSITION.tolist())
        rng = [self.rooms.rng(index, 10 + number) for number in range(8)]
        return list(render_scene_views(self.rooms.room(index), at, rng).captions)


class RoomWalk:
    """Camera walk of ``length`` frames, on a smooth path through room ``index`` of the data set ``rooms``.

    The path stays in the middle of the room, where no furniture stands. ``options`` gives the image size and the field
    of view. `views(numbers)` renders frames, and `keys` are the numbers of the key frames, of which consecutive ones
    overlap by about 60 % of the pixels.
    """

    def __init__(self, rooms: Rooms, index: int, length: int, options: RoomPathsConfig) -> None:
        self.rooms, self.index, self.length, self.options = rooms, index, length, options

    @cached_property
    def room(self) -> Room:
        return self.rooms.room(self.index)

    @property
    def frames(self) -> Sequence[int]:
        return range(self.length)

    @cached_property
    def keys(self) -> Sequence[int]:
        small = _resized(self.cameras, KEY_WIDTH)
        return key_frames(torch.from_numpy(render_images(self.room, small, 1, True)[1]), small, OVERLAP)

    @cached_property
    def cameras(self) -> Cameras:
        """Cameras of all frames, in room axes (metres, z up, origin in the centre of the floor).

        Along the walk, position and pitch oscillate, and the yaw turns one way at a varying speed.
        """
        rng, k, o = self.rooms.rng(self.index, 4), np.arange(self.length), self.options

        def wave(amplitude: float, shortest: float, longest: float) -> Array:
            return amplitude * np.sin(2 * np.pi * (k / rng.uniform(shortest, longest) + rng.uniform()))

        radii = FREE_RADIUS * rng.uniform(0.2, 0.6, 2)
        position = np.stack(
            [wave(radii[0], 70, 110), wave(radii[1], 70, 110), rng.uniform(1.1, 1.6) + wave(0.08, 30, 50)], -1
        )
        yaw = rng.uniform(0, 360) + rng.choice([-1, 1]) * (rng.uniform(2.4, 3.4) * k + wave(14, 40, 60))
        c2w = look_c2w(position, np.deg2rad(yaw), np.deg2rad(-6 + wave(7, 40, 80)))
        K = square_pixels(torch.full((self.length,), 0.5 * o.width / tan(radians(o.fov) / 2)), o.height, o.width)
        return Cameras(torch.from_numpy(c2w), Projection(K), o.height, o.width)

    def views(self, numbers: Sequence[int]) -> SceneViews:
        seed = self.rooms.seed
        rng = [numpy_generator(seed, n, f"caption of room {self.index}, {self.rooms.split}") for n in numbers]
        cameras = self.cameras.select(list(numbers))
        return render_scene_views(self.room, cameras, rng, depth=True)


def room_walks(options: RoomPathsConfig, seed: int, split: SceneSplit, length: int | None = None) -> list[RoomWalk]:
    """Return one camera walk (frames of a moving camera) through each of ``options.count`` rooms.

    The rooms are generated on first use. ``seed`` and ``split`` determine which rooms they are: "train" and "test" have
    different rooms. ``length`` is the number of frames per walk; None: 9 (``FRAMES_PER_KEY``) times ``options.views``,
    the number of views of a training example.
    """
    rooms = _rooms(seed, split, options.clutter)
    return [RoomWalk(rooms, k, length or FRAMES_PER_KEY * options.views, options) for k in range(options.count)]


def room_paths(config: RoomPathsConfig, seed: int = 0, split: SceneSplit = "train") -> WalkScenes:
    """Build a data set whose examples are sequences of views along a camera walk through a toy room.

    Key frames are frames of the walk, chosen so that consecutive ones overlap by about 60 % of the pixels. In the split
    "test" there is one example per room: the first key frames of the walk. In "train" an example is random: consecutive
    key frames or, with the probability ``config.between``, two key frames and some of the frames between them. ``seed``
    determines the rooms and the random examples.
    """
    o, walks = config, room_walks(config, seed, split)
    rooms = f"seed {seed}, {split}, clutter {o.clutter:g}"
    description = f"toy rooms, {rooms}, {o.height} x {o.width} px, {o.fov:g} deg, overlap {OVERLAP:g}"
    if split == "test":
        return WalkScenes(walks, o.views, description, entries=[(k, 0) for k in range(len(walks))])
    return WalkScenes(walks, o.views, description, seed, o.between)


def room_triangles(room: Room) -> tuple[Array, Array, Array]:
    """Return the T triangles of a room as seen from inside, without the outer sides of walls, floor and ceiling.

    Returns:
        Corners (T, 3, 3) in metres, z up, sRGB colours (T, 3) in [0, 1], and integer labels (T,): k + 1 for the item
        ``room.items[k]``, ``len(room.items)`` + 1 for the bare room (walls, floor, ceiling and lamp).
    """
    vertices, faces, colours, labels = room.asset.mesh()
    corners = vertices[faces]
    low = np.array([-HALF_WIDTH, -HALF_WIDTH, 0]) - THICKNESS
    high = np.array([HALF_WIDTH, HALF_WIDTH, HEIGHT]) + THICKNESS
    middle = corners.mean(1)
    inside = ((middle > low) & (middle < high)).all(1)
    return corners[inside], colours[inside], labels[inside]


def prompted_room(prompt: str, seed: int) -> tuple[Array, Callable[[Cameras], list[str]], list[str]]:
    """Make a room with the furniture that a prompt names.

    Returns:
        Tuple (triangles, describe, warnings). The triangles are the corners (T, 3, 3) of the room's mesh in metres, z
        up, without colours. ``describe`` maps V cameras to V captions of what they show; a caption names at most two
        items besides the floor. The warnings tell the user which furniture has no place.
    """
    room, lost = furnish_from(prompt, numpy_generator(seed, 0, "room"))

    def describe(at: Cameras) -> list[str]:
        labels = render_images(room, _resized(at, CAPTION_PIXELS), 1, True)[2]
        return [describe_view(room, label, None) for label in labels]

    notes = [f"the room has no place for another {noun}" for noun in lost]
    return room_triangles(room)[0], describe, notes


def glb(corners: Array, colours: Array) -> bytes:
    """Encode triangles ``corners`` (T, 3, 3) with sRGB ``colours`` (T, 3) in [0, 1] as a GLB file with vertex colours.

    The z axis is up in ``corners``, the y axis in the file; +x becomes +z. Lengths stay the same.
    """
    rgba = np.pad(np.round(to_linear(colours) * 255).astype(np.uint8), ((0, 0), (0, 1)), constant_values=255)
    mesh = trimesh.Trimesh(
        corners.reshape(-1, 3)[:, [1, 2, 0]],
        np.arange(3 * len(corners)).reshape(-1, 3),
        vertex_colors=np.repeat(rgba, 3, axis=0),
        process=False,
    )
    data = mesh.export(file_type="glb")
    assert isinstance(data, bytes)
    return data
