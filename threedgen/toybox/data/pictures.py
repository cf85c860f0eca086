"""Toybox images for trainings. The classes are `data.latent_cache.ExampleSource`s; a disk cache stores VAE latents.

The images are single images, rings of views around an object, and the six views that the model MV-Adapter generates.
"""

import numpy as np

from threedgen.data.latent_cache import Captioned
from threedgen.data.object_views import ObjectViews
from threedgen.data.options import OBJECT_RADIUS
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import orbit_array
from threedgen.geometry.views import GREY
from threedgen.guidance.priors.mvadapter.inputs import HALF
from threedgen.toybox.options import ToyboxObjectsConfig
from threedgen.toybox.world.builder import bounds
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.raycast import RenderResult, render
from threedgen.toybox.world.rooms import Rooms
from threedgen.toybox.world.toybox import Split, Style, Toybox

FRONT, ANY_SIDE = 6.0, 0.25
"""Azimuths of single images: the fraction ANY_SIDE of them is uniform, and the others prefer the front. These have a
von Mises distribution, with a density proportional to exp(FRONT cos azimuth)."""
IMAGES_PER_ROOM = 2


class Photographs:
    """Source of single captioned renders for priors without camera conditioning. Most show one object from the front.

    The method `render_examples(indices, size)` returns N images (N, size, size, 3) in [0, 1] with their captions and
    camera poses, where ``indices`` is a range of N image numbers.

    Args:
        seed, split: seed and split ("train" or "held-out") of the objects and rooms.
        variation: factor on the random variation of the objects, in [0, 1]; 0: no variation.
        rooms: share of images that are taken inside rooms, in [0, 1].
        clutter: factor on the number of objects in a room, usually in [0, 1]. With 1, a room has 8 to 14, or fewer if
            not all of them fit.
        style: "plain", or "blocks" to replace each solid of an object by a box. Rooms stay plain.
    """

    n_view = 1

    def __init__(
        self,
        seed: int = 0,
        split: Split = "train",
        variation: float = 1.0,
        rooms: float = 0.25,
        clutter: float = 1.0,
        style: Style = "plain",
    ) -> None:
        self.seed, self.split, self.room_share = seed, split, rooms
        self.box, self.rooms = Toybox(seed, split, variation=variation, style=style), Rooms(seed, split, clutter)

    def describe(self) -> str:
        rooms = f"rooms {self.room_share:g}, clutter {self.rooms.clutter:g}"
        return f"photographs, {self.box.describe()}, front {FRONT:g} or {ANY_SIDE:g}, {rooms}"

    def room_images_before(self, index: int) -> int:
        """Return how many of the images 0 to ``index`` - 1 show the inside of a room."""
        return int(index * self.room_share)

    def render_examples(self, indices: range, size: int) -> Captioned:
        inside = np.array([self.room_images_before(i + 1) > self.room_images_before(i) for i in indices])
        rgb = np.empty((len(indices), size, size, 3), np.float32)
        c2w, captions = np.empty((len(indices), 4, 4), np.float32), [""] * len(indices)
        for mask, render_images in ((inside, self.room_images), (~inside, self.object_images)):
            positions = np.flatnonzero(mask)
            if len(positions):
                rgb[positions], texts, c2w[positions] = render_images([indices[k] for k in positions], size)
                for k, text in zip(positions, texts, strict=True):
                    captions[k] = text
        return Captioned(rgb, captions, c2w)

    def object_images(self, indices: list[int], size: int) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Render the N images of this source with the numbers ``indices``, which must be images of single objects.

        Return rgb (N, size, size, 3) in [0, 1], N captions, and c2w (N, 4, 4), camera-to-world, OpenGL axes. The image
        with the number k shows object k of the toybox.
        """
        assets = [self.box.asset(i) for i in indices]
        rngs, view = [self.box.rng(i, 4) for i in indices], self.box.view
        azimuth = np.array(
            [rng.uniform(-np.pi, np.pi) if rng.random() < ANY_SIDE else rng.vonmises(0, FRONT) for rng in rngs]
        )
        elevation, fov = (np.deg2rad([rng.uniform(*r) for rng in rngs]) for r in (view.elevation, view.fov))
        near = np.array([rng.uniform(*view.relative_distance) for rng in rngs])
        c2w = orbit_array(elevation, azimuth, near / np.tan(fov / 2))
        grey = np.array([rng.uniform(*view.grey) for rng in rngs])
        rgb = render(assets, np.arange(len(assets)), c2w, fov, size, grey).rgb
        return rgb, [asset.caption for asset in assets], c2w

    def room_images(self, indices: list[int], size: int) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Render the N images of this source with the numbers ``indices``, which must be images of rooms.

        Return rgb (N, size, size, 3) in [0, 1], N captions, and c2w (N, 4, 4), camera-to-world, OpenGL axes.
        """
        numbers, n = [self.room_images_before(i) for i in indices], IMAGES_PER_ROOM
        rooms = sorted({number // n for number in numbers})
        rgb, texts, c2w = self.rooms.render_views(rooms, size, n)
        order = [rooms.index(number // n) * n + number % n for number in numbers]
        return rgb[order], [texts[k] for k in order], c2w[order]


MIN_AREA, MAX_WEIGHT, PIXELS = 0.05, 10.0, 4
"""Constants of `ViewRings.part_weights`. A part that covers the fraction a of an image has the loss weight
MIN_AREA / a, at least 1 and at most MAX_WEIGHT. Along each axis, PIXELS pixels are rendered per latent pixel."""


class ViewRings:
    """Source of training images of captioned toybox objects: ``n_view`` views of each object of the data set ``box``.

    ``box`` also samples the cameras. Those of a `Toybox` have evenly spaced azimuths, from a random first one.
    """

    def __init__(self, box: Toybox, n_view: int = 4) -> None:
        self.n_view, self.box = n_view, box

    def describe(self) -> str:
        return f"{self.n_view} sides, {self.box.describe()}"

    def render_examples(self, indices: range, size: int) -> Captioned:
        assets, rgb, c2w, _ = self.box.batch(indices, size, self.n_view)
        return Captioned(rgb, [asset.caption for asset in assets], c2w)

    def part_weights(self, index: int, size: int) -> np.ndarray:
        """Return loss weights (V, size, size), from 1 to 10, for the latents of the V views of object ``index``.

        ``size`` is the side of the latents. Small parts, such as eyes and glasses, get larger weights: a part that
        covers the fraction a of an image has the weight 0.05 / a (`MIN_AREA` / a), clipped to 1 ... `MAX_WEIGHT` = 10.
        The background has the weight 1.
        """
        c2w, fov, _, _ = self.box.cameras(index, self.n_view)
        fine, views = PIXELS * size, np.zeros(self.n_view, np.int64)
        label = render([self.box.asset(index)], views, c2w, fov, fine, supersample=0, with_gbuffer=True).label
        weights = np.ones(label.shape, np.float32)
        for view, labels in zip(weights, label, strict=True):
            area = np.bincount(labels.ravel()) / labels.size
            scale = np.clip(MIN_AREA / np.maximum(area, 1e-6), 1, MAX_WEIGHT)
            scale[0] = 1  # background
            view[:] = scale[labels]
        return weights.reshape(self.n_view, size, PIXELS, size, PIXELS).mean((2, 4))


class ToyboxObjects(ObjectViews):
    """Source of training images of toybox objects, in the six views that the model MV-Adapter generates.

    Args:
        options: number of objects, and amount of their random variation.
        seed, split: seed and split ("train" or "held-out") of the objects and the random cameras.
        control: kind of the maps that condition the views, "rays" (camera rays) or "geometry" (positions and normals).
            It also selects the six views: at elevation 0 and azimuths 0, 45, 90, 180, 270 and 315 degrees, or front,
            right, back, left, top and bottom. With "rays", small objects stay small in the image. With "geometry",
            every object is scaled to the same longest side, as a mesh is before MV-Adapter textures it.
        reference: whether an object has a seventh image, an input of the network.
        anywhere: fraction of the objects whose cameras are turned and raised at random.
        fov: field of view, degrees; 0: orthographic cameras.
    """

    options: ToyboxObjectsConfig

    def prepare(self) -> None:
        self.box = Toybox(self.seed, self.split, variation=self.options.variation)

    def describe(self) -> str:
        return f"{super().describe()}, luck {self.box.variation:g}"

    def __len__(self) -> int:
        return self.options.count

    def caption(self, index: int) -> str:
        return self.box.asset(index).caption

    def asset(self, index: int) -> Asset:
        """Return object ``index`` (z up, front +x), scaled for rendering.

        If MV-Adapter's condition (attribute ``control``) is "geometry", the bounding box of the object is centred, and
        its longest side is 1. If it is "rays", all objects are scaled by the same factor, so that the largest fit into
        the ball of radius 0.5, and small objects stay small.
        """
        asset = self.box.asset(index)
        if self.control == "rays":
            return asset.move_and_scale(0.0, HALF / OBJECT_RADIUS)
        low, high = bounds(asset.primitives)
        return asset.move_and_scale((low + high) / 2, 2 * HALF / float((high - low).max()))

    def render_views(self, index: int, at: Cameras) -> np.ndarray:
        return self.render(index, at, supersample=2).rgb

    def surface(self, index: int, at: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        result = self.render(index, at, supersample=0, with_gbuffer=True)
        origins, directions = (part.numpy() for part in at.rays())
        points = origins + directions * np.where(result.mask, result.depth, 0)[..., None]
        return points, result.normal, result.mask

    def render(self, index: int, at: Cameras, supersample: int, with_gbuffer: bool = False) -> RenderResult:
        parallel, asset_index = at.projection.parallel, np.zeros(len(at), np.int64)
        fov = (0.5 * at.height / at.projection.K[:, 1, 1] if parallel else at.fov).numpy()
        args = (at.height, GREY, supersample, with_gbuffer)
        return render([self.asset(index)], asset_index, at.c2w.numpy(), fov, *args, parallel=parallel)
