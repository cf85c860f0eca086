"""Training images with random holes, for inpainting models, which take a mask and the known part of an image."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor

from threedgen.data.latent_cache import Captioned, LatentCache
from threedgen.data.scene_views import SceneSource
from threedgen.geometry.views import resize
from threedgen.guidance.priors.mvdiffusion.inputs import mask_channels, masked_images
from threedgen.run.arrays import Array

Hole = Callable[[np.random.Generator, int], Array]
"""Function (rng, size) -> hole (size, size), bool: True where the image is unknown."""
WHOLE = 0.25  # probability that the whole image is unknown (`painted`) or known (`around_a_photo`)


def painted(rng: np.random.Generator, size: int) -> Array:
    """Sample a random mask (size, size), bool, True where the image is unknown. `size` is in pixels.

    The unknown part is the whole image with probability `WHOLE` = 0.25, else a rectangle or all except a rectangle. The
    edges of the rectangle are at multiples of 8 pixels. Half of the rectangles have the full height of the image.
    """
    if rng.random() < WHOLE:
        return np.ones((size, size), bool)
    first, second = np.sort(rng.integers(0, size // 8 + 1, (2, 2)), axis=0) * 8
    if rng.random() < 0.5:  # full height, like the unknown part of the next view of a panorama
        first[0], second[0] = 0, size
    box = np.zeros((size, size), bool)
    box[first[0] : second[0], first[1] : second[1]] = True
    return box if rng.random() < 0.5 else ~box


def around_a_photo(rng: np.random.Generator, size: int) -> Array:
    """Sample a random mask (size, size), bool, True where the image is unknown: outside a centred photo.

    `size` is in pixels. The field of view of the image is 90 degrees, that of the longer side of the photo 50 to 90
    degrees. With probability `WHOLE` = 0.25 the whole image is known, and the mask is all False.
    """
    if rng.random() < WHOLE:
        return np.zeros((size, size), bool)
    longer = np.tan(np.deg2rad(rng.uniform(50, 90)) / 2)
    sides = longer * np.array([1, rng.choice([1, 3 / 4, 9 / 16])])
    height, width = sides if rng.random() < 0.3 else sides[::-1]
    distance = np.abs(np.arange(size) + 0.5 - size / 2) / (size / 2)
    return ~((distance < height)[:, None] & (distance < width))


class MaskedViews:
    """Source of training images (`data.latent_cache.ExampleSource`): pairs of a view and the same view with a hole.

    Args:
        source: scenes from which the views come.
        seed: together with the index of a view, it seeds the random generator of the view's hole.
        hole: function (random generator, side in pixels) -> bool mask (side, side), True in the hole; `painted` is one.
        first: True: use only the first view of each scene. False: use all views.
    """

    n_view = 2

    def __init__(self, source: SceneSource, seed: int, hole: Hole, first: bool) -> None:
        self.source, self.seed, self.hole = source, seed, hole
        self.views_per_scene = 1 if first else source.n_view

    def __len__(self) -> int:
        return len(self.source) * self.views_per_scene

    def describe(self) -> str:
        kind = f"{self.views_per_scene} views of a scene, {self.hole.__name__}, code"
        return f"masked views, seed {self.seed}, {kind}, of {self.source.describe()}"

    def sample_hole(self, index: int, size: int) -> Array:
        return self.hole(np.random.default_rng([self.seed, 7, index]), size)

    def render_examples(self, indices: range, size: int) -> Captioned:
        rgb, captions = np.empty((len(indices), 2, size, size, 3), np.float32), []
        scene, number = None, -1
        for place, index in enumerate(indices):
            if scene is None or number != index // self.views_per_scene:
                number = index // self.views_per_scene
                scene = self.source.scene(number % len(self.source))
            view = index % self.views_per_scene
            image = resize(scene.views.images[view, None], size, size)
            known = torch.from_numpy(~self.sample_hole(index, size))
            rgb[place] = torch.cat([image, masked_images(image, known[None])])
            captions.append(scene.captions[view])
        poses = np.broadcast_to(np.eye(4, dtype=np.float32), (2 * len(indices), 4, 4))
        return Captioned(rgb.reshape(-1, size, size, 3), captions, poses)


class MaskCache(LatentCache):
    """Disk cache of training data for inpainting models: VAE latents of views with and without a hole, and captions.

    `sample` returns random examples. `extra` returns the mask of the hole and the latents of the view with the hole,
    for examples with given indices. The latents of a view are stored twice, whole and with a grey hole. The mask is not
    stored, but computed from the index. An example is rendered and encoded when it is first used.

    Args:
        folder: folder of the cache files.
        views: source of the views, their holes and their captions.
        vae: autoencoder that encodes the images.
        size: side of the images in pixels.
    """

    def __init__(self, folder: Path, views: MaskedViews, vae: AutoencoderKL, size: int) -> None:
        super().__init__(folder, views, vae, size, len(views))
        self.views = views

    def sample(self, rng: np.random.Generator, available: int, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Sample n = `count` of the first `available` images, with replacement.

        Returns latents (n, C, h, w) of the whole images; a tensor (n, 1 + C, h, w) with the mask (1 where unknown) in
        channel 0 and then the latents of the images with a grey hole; and n captions.
        """
        chosen = rng.integers(0, min(available, self.count), count)
        return self.latents(chosen)[:, 0], self.extra(chosen), self.captions(chosen)

    def extra(self, chosen: Sequence[int] | Array) -> Tensor:
        """Return the inputs (n, 1 + C, h, w) that an inpainting UNet takes beside the noisy latents of n images.

        `chosen` are the n image indices. Channel 0 is the mask, 1 where a latent pixel is unknown; the others are the
        latents of the images with a grey hole. A latent pixel is known only if all its image pixels are known.
        """
        known = self.latents(chosen)[:, 1]
        holes = torch.from_numpy(np.stack([self.views.sample_hole(int(i), self.size) for i in chosen]))
        return mask_channels(known, ~holes)
