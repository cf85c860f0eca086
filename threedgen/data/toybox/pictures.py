"""What the toybox is learnt from: single pictures as photographers take them, and objects from several sides.

All are sources of ``threedgen.data.bank``.
"""

from __future__ import annotations

import numpy as np

from threedgen.data.bank import Captioned
from threedgen.data.object_views import ObjectViews
from threedgen.data.options import ObjectSplit, ToyboxObjectsConfig
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.mvadapter.cameras import HALF
from threedgen.guidance.mvadapter.pictures import GREY
from threedgen.guidance.options import Control

from .builder import RADIUS, bounds
from .primitives import Asset
from .raycast import Picture, render
from .rooms import Rooms
from .styles import Style
from .world import Split, Toybox

FRONT, ANY_SIDE = 6.0, 0.25
"""How much photographers prefer the front: the density of the azimuth is proportional to exp(FRONT cos azimuth), but
for a share of the pictures that they take from any side."""
SHOTS = 2
"""Pictures taken in one room."""


class Photographs:
    """Single captioned pictures: a share of them, ``rooms``, are views inside rooms, the others show an object, mostly
    from the front.  No camera is ever told.  ``luck``, ``style``: of the objects, see ``Toybox``; ``clutter``: see
    ``furnish``."""

    n_view = 1

    def __init__(
        self,
        seed: int = 0,
        split: Split = "train",
        luck: float = 1.0,
        rooms: float = 0.25,
        clutter: float = 1.0,
        style: Style = "plain",
    ) -> None:
        self.seed, self.split, self.share = seed, split, rooms
        self.box, self.rooms = Toybox(seed, split, luck=luck, style=style), Rooms(seed, split, clutter)

    def describe(self) -> str:
        rooms = f"rooms {self.share:g}, clutter {self.rooms.clutter:g}"
        return f"photographs, {self.box.describe()}, front {FRONT:g} or {ANY_SIDE:g}, {rooms}"

    def before(self, index: int) -> int:
        """How many of the pictures before this one are views inside rooms."""
        return int(index * self.share)

    def block(self, indices: range, size: int) -> Captioned:
        inside = np.array([self.before(i + 1) > self.before(i) for i in indices])
        rgb = np.empty((len(indices), size, size, 3), np.float32)
        c2w, captions = np.empty((len(indices), 4, 4), np.float32), [""] * len(indices)
        for where, take in ((inside, self.shots), (~inside, self.portraits)):
            places = np.flatnonzero(where)
            if len(places):
                rgb[places], texts, c2w[places] = take([indices[k] for k in places], size)
                for k, text in zip(places, texts, strict=True):
                    captions[k] = text
        return Captioned(rgb, captions, c2w)

    def portraits(self, indices: list[int], size: int) -> tuple[np.ndarray, list[str], np.ndarray]:
        """One picture of each object."""
        assets = [self.box.asset(i) for i in indices]
        rngs, view = [self.box.rng(i, 4) for i in indices], self.box.view
        azimuth = np.array(
            [rng.uniform(-np.pi, np.pi) if rng.random() < ANY_SIDE else rng.vonmises(0, FRONT) for rng in rngs]
        )
        elevation, fov = (np.deg2rad([rng.uniform(*r) for rng in rngs]) for r in (view.elevation, view.fov))
        near = np.array([rng.uniform(*view.relative_distance) for rng in rngs])
        c2w = orbit_array(elevation, azimuth, near / np.tan(fov / 2))
        grey = np.array([rng.uniform(*view.grey) for rng in rngs])
        picture = render(assets, np.arange(len(assets)), c2w, fov, size, grey)
        return picture.rgb, [asset.caption for asset in assets], c2w

    def shots(self, indices: list[int], size: int) -> tuple[np.ndarray, list[str], np.ndarray]:
        """``SHOTS`` pictures of each room, in turn."""
        numbers = [self.before(i) for i in indices]
        rooms = sorted({n // SHOTS for n in numbers})
        rgb, texts, c2w = self.rooms.shots(rooms, size, SHOTS)
        chosen = [rooms.index(n // SHOTS) * SHOTS + n % SHOTS for n in numbers]
        return rgb[chosen], [texts[k] for k in chosen], c2w[chosen]


class FourSides:
    """Objects of a toybox from ``n_view`` sides at once, with their cameras."""

    def __init__(self, box: Toybox, n_view: int = 4) -> None:
        self.n_view, self.box = n_view, box

    def describe(self) -> str:
        return f"{self.n_view} sides, {self.box.describe()}"

    def block(self, indices: range, size: int) -> Captioned:
        assets, rgb, c2w, _ = self.box.batch(indices, size, self.n_view)
        return Captioned(rgb, [asset.caption for asset in assets], c2w)


class ToyboxObjects(ObjectViews):
    """Objects from the sides that MV-Adapter draws.

    With rays a small object is small, as its caption says; with its geometry, which says so itself, it is as large as
    a mesh that is to be textured.
    """

    def __init__(
        self,
        options: ToyboxObjectsConfig,
        seed: int,
        split: ObjectSplit = "train",
        control: Control = "rays",
        reference: bool = True,
        anywhere: float = 0.0,
        fov: float = 0.0,
    ) -> None:
        super().__init__(seed, split, control, reference, anywhere, fov)
        self.count, self.box = options.count, Toybox(seed, split, luck=options.luck)

    def describe(self) -> str:
        return f"{super().describe()}, luck {self.box.luck:g}"

    def __len__(self) -> int:
        return self.count

    def caption(self, index: int) -> str:
        return self.box.asset(index).caption

    def asset(self, index: int) -> Asset:
        """As large as its views take it to be."""
        asset = self.box.asset(index)
        if self.control == "rays":
            return asset.moved(0.0, HALF / RADIUS)
        low, high = bounds(asset.primitives)
        return asset.moved((low + high) / 2, 2 * HALF / float((high - low).max()))

    def photograph(self, index: int, at: Cameras) -> np.ndarray:
        return self.render(index, at, supersample=2).rgb

    def surface(self, index: int, at: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = self.render(index, at, supersample=0, truth=True)
        origins, directions = (part.numpy() for part in at.rays())
        points = origins + directions * np.where(seen.mask, seen.depth, 0)[..., None]
        return points, seen.normal, seen.mask

    def render(self, index: int, at: Cameras, supersample: int, truth: bool = False) -> Picture:
        parallel, which = at.projection.parallel, np.zeros(len(at), np.int64)
        seen = (0.5 * at.height / at.projection.K[:, 1, 1] if parallel else at.fov).numpy()
        way = (at.height, GREY, supersample, truth)
        return render([self.asset(index)], which, at.c2w.numpy(), seen, *way, parallel=parallel)
