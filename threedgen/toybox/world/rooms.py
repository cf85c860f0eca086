"""Data set of captioned toy rooms, with random cameras, renders and captions of the views.

Lengths are metres; the origin is the centre of the floor, z points up. Room ``index`` of the data set depends only on
seed, split and clutter (a factor on the number of objects).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from threedgen.geometry.poses import orbit_array

from .furnishing import FREE_RADIUS, Room, furnish
from .grammar import article
from .raycast import RenderResult, render
from .toybox import Split

EYE_POSITION = np.array([0.0, 0.0, 1.4])  # camera position (3,) of panoramas, metres
YAW_STEP = 45
"""Yaw difference of adjacent panorama views in degrees. The views look at walls and corners in turn."""


class Rooms:
    """Infinite data set of captioned toy rooms, addressed by ``index`` (0, 1, 2, ...).

    The splits "train" and "held-out" have different rooms. ``clutter``, usually in [0, 1], is a factor on the number of
    objects in a room; 1: 8 to 14 pieces of furniture and other objects, of which those that do not fit are left out.
    """

    def __init__(self, seed: int = 0, split: Split = "train", clutter: float = 1.0) -> None:
        self.seed, self.split, self.clutter = seed, split, clutter

    def rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2 if self.split == "train" else 3, index, purpose])

    def room(self, index: int) -> Room:
        return furnish(self.rng(index, 0), self.clutter)

    def render_views(
        self, indices: Sequence[int], size: int, n_view: int = 1
    ) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Render V = ``n_view`` views of each of the N rooms ``indices``, from random cameras (`sample_camera`).

        Returns:
            rgb (N * V, size, size, 3) in [0, 1], N * V captions, and c2w (N * V, 4, 4), camera-to-world, OpenGL axes.
            The V views of a room are consecutive.
        """
        rooms = [self.room(i) for i in indices]
        rng = [self.rng(i, 1) for i in indices]
        cameras = [sample_camera(one) for one in rng for _ in range(n_view)]
        c2w, fov = np.stack([c for c, _ in cameras]), np.array([f for _, f in cameras])
        room_index = np.repeat(np.arange(len(rooms)), n_view)
        rgb = render_rooms(rooms, room_index, c2w, fov, size).rgb
        labels = render_rooms(rooms, room_index, c2w, fov, 32, supersample=1, with_gbuffer=True).label
        texts = [describe_view(rooms[k], label, rng[k]) for k, label in zip(room_index, labels, strict=True)]
        return rgb, texts, c2w


def render_rooms(
    rooms: Sequence[Room],
    room_index: np.ndarray,
    c2w: np.ndarray,
    fov: np.ndarray,
    size: int,
    supersample: int = 2,
    with_gbuffer: bool = False,
) -> RenderResult:
    """Render V square views of ``size`` x ``size`` pixels inside rooms. View v shows the room ``room_index[v]``.

    ``c2w`` (V, 4, 4) is camera-to-world with OpenGL axes, ``fov`` (V,) the vertical field of view in radians, and
    ``supersample`` the number of rays per pixel along each image axis. ``with_gbuffer`` adds mask, depth, normals and
    labels. In the label images of a room with n items, k + 1 stands for ``items[k]``, and n + 1 for the bare room
    (walls, floor, ceiling and lamp).
    """
    lamps = np.stack([room.lamp for room in rooms])[room_index]
    assets = [room.asset for room in rooms]
    return render(assets, room_index, c2w, fov, size, 0.5, supersample, with_gbuffer, lamps)


def look_c2w(position: np.ndarray, azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Return camera-to-world matrices (..., 4, 4), float32, OpenGL axes, of cameras at positions (..., 3).

    ``azimuth`` and ``elevation`` (...) are those of the viewing direction in radians. Azimuth 0 looks along +x, pi / 2
    along +y. A positive elevation looks up.
    """
    c2w = orbit_array(-elevation, azimuth + np.pi, 0)  # a camera on the opposite side looks this way
    c2w[..., :3, 3] = position
    return c2w


def sample_camera(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Sample a camera in a room. Return c2w (4, 4), camera-to-world, OpenGL axes, and the field of view in radians.

    About 85 % of the cameras are horizontal, in the centre at a height of 1.4 m, at a multiple of 45 degrees, with a
    field of view of 90 degrees, as in panoramas. The others have random directions and fields of view (55 to 95
    degrees), and random positions near the centre.
    """
    if rng.random() < 0.85:
        position, azimuth, elevation, fov = EYE_POSITION, float(YAW_STEP * rng.integers(360 // YAW_STEP)), 0.0, 90.0
    else:
        position = np.array([*rng.uniform(-0.3, 0.3, 2) * FREE_RADIUS, rng.uniform(1.1, 1.6)])
        azimuth, elevation = rng.uniform(0, 360), float(np.clip(rng.normal(-4, 8), -25, 20))
        fov = rng.uniform(55, 95)
    return look_c2w(position, np.deg2rad(azimuth), np.deg2rad(elevation)), float(np.deg2rad(fov))


# --- captions ------------------------------------------------------------------------------------------------------


ROOM_WORDINGS, FLOOR_WORDING = 6, 1
"""Number of caption wordings, and the number of the wording that names the colour of the floor."""
MAX_ITEMS, MIN_AREA = 3, 0.012
"""Maximum number of items in a caption (the floor, if named, counts as one), and their minimum share of the image."""


def describe_view(room: Room, label: np.ndarray, rng: np.random.Generator | None) -> str:
    """Write the caption of a view: the wall colour, and the largest visible items of the room, from left to right.

    There are six wordings. Five of them name up to three items. The other one names the colour of the floor and up to
    two items. Items that cover less than 1.2 % of the view (`MIN_AREA`) are left out.

    Args:
        label: label image (H, W) of the view: k + 1 stands for ``room.items[k]``.
        rng: chooses the wording at random; None: always the wording with the colour of the floor.
    """
    n, wording = len(room.items), FLOOR_WORDING if rng is None else int(rng.integers(ROOM_WORDINGS))
    area = np.bincount(label.ravel(), minlength=n + 2)[1 : n + 1] / label.size
    largest = [k for k in np.argsort(-area, kind="stable") if area[k] >= MIN_AREA]
    visible = largest[: MAX_ITEMS - (wording == FLOOR_WORDING)]
    visible.sort(key=lambda k: np.nonzero(label == k + 1)[1].mean())
    return sentence(room.wall, room.floor, [room.items[k] for k in visible], wording)


def captions() -> Iterator[str]:
    """Yield captions to train a tokenizer: together they contain all words that only captions of rooms have."""
    items = ["a red door", "a window", "a picture"]
    for wording in range(ROOM_WORDINGS):
        yield sentence("red", "orange", items, wording)
        yield sentence("red", "orange", ["a window", "a window"], wording)
        yield sentence("red", "orange", [], wording)


def sentence(wall: str, floor: str, items: list[str], wording: int) -> str:
    """Write a room caption, such as "a blue room with a red sofa and a window".

    ``wall`` and ``floor`` are colour words, and ``items`` are phrases, such as "a red sofa". ``wording``, from 0 to 5,
    is the number of the sentence pattern; only pattern 1 names the floor.
    """
    core = f"{wall} room"
    plain = f"{article(core)} {core}"
    for k, pair in enumerate(zip(items, items[1:], strict=False)):
        if pair == ("a window", "a window"):
            items = [*items[:k], "two windows", *items[k + 2 :]]
            break
    if wording == FLOOR_WORDING:
        items = [f"{article(floor)} {floor} floor", *items]
    if not items:
        return (plain, f"the corner of {plain}")[wording % 2]
    listed = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    forms = [
        f"{plain} with {listed}", f"{plain} with {listed}", f"inside {plain} with {listed}",
        f"{core}, {', '.join(items)}", f"{listed} in {plain}", f"a room with {wall} walls, {listed}",
    ]  # fmt: skip
    return forms[wording % ROOM_WORDINGS]
