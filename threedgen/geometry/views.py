"""Images of a scene with their cameras, their pixels as training rays, and the interface of novel-view samplers.

A novel-view sampler generates images of a scene from new cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Index

OBJECT_SHARE, GREY = 0.9, 0.5
"""Fraction of a reference image that the object's longer side fills, and grey level of the background."""


@dataclass(frozen=True)
class Views:
    """N images (N, H, W, 3), float in [0, 1], with their N cameras.

    Raises ValueError if images and cameras differ in number or size.
    """

    images: Tensor
    cameras: Cameras

    def __post_init__(self) -> None:
        expected = (len(self.cameras), self.cameras.height, self.cameras.width, 3)
        if tuple(self.images.shape) != expected:
            raise ValueError(f"Images do not fit the cameras: images.shape={tuple(self.images.shape)}. Use {expected}.")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Index) -> Views:
        """Return the views at `index` (slice, integers or bool mask), in that order."""
        return Views(self.images[index], self.cameras.select(index))

    def resized(self, size: int) -> Views:
        """Return views of size x size pixels: resized images, and cameras with the same fields of view."""
        if (self.cameras.height, self.cameras.width) == (size, size):
            return self
        return Views(resize(self.images, size, size), self.cameras.with_size(size, size))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images (N, h, w, 3) to (N, height, width, 3): by area averaging if no side grows, else bilinearly."""
    x = images.permute(0, 3, 1, 2)
    if height <= x.shape[-2] and width <= x.shape[-1]:
        x = F.interpolate(x, (height, width), mode="area")
    else:
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return x.permute(0, 2, 3, 1)


FAINT_ALPHA = 0.05
"""Largest alpha that does not count as the object: networks that compute an alpha rarely give exactly 0."""


def framed(cut: Tensor, height: int, width: int, share: float = OBJECT_SHARE) -> Tensor:
    """Place a cut-out object in the middle of a grey image; return the image (height, width, 3) in [0, 1].

    `cut` is the object, a straight (not premultiplied) RGBA image (h, w, 4) in [0, 1]. It is cropped to its
    pixels and resized to fill the fraction `share` of the image's height or width, whichever it reaches first.
    """
    image = centred(cut, height, width, share)
    return (image[..., :3] + (1 - image[..., 3:]) * GREY).clamp(0, 1)


def centred(cut: Tensor, height: int, width: int, share: float = OBJECT_SHARE) -> Tensor:
    """Place a cut-out object in the middle of a transparent image; return premultiplied RGBA (height, width, 4).

    `cut` is a straight (not premultiplied) RGBA image (h, w, 4) in [0, 1]. It is cropped to the pixels with
    alpha > 0.05 (`FAINT_ALPHA`; to its stronger pixels if it is fainter) and resized, with its aspect ratio kept, until
    it fills the fraction `share` of the image's height or width, whichever it reaches first.
    """
    alpha = cut[..., 3]
    rows, columns = (alpha > min(FAINT_ALPHA, float(alpha.max()) / 2)).nonzero(as_tuple=True)
    (top, bottom), (left, right) = ((max(0, int(at.min()) - 1), int(at.max()) + 2) for at in (rows, columns))
    part = cut[top:bottom, left:right]
    part = torch.cat([part[..., :3] * part[..., 3:], part[..., 3:]], dim=-1)  # transparent colours do not bleed
    scale = share * min(height / part.shape[0], width / part.shape[1])
    sides = [max(1, round(scale * side)) for side in part.shape[:2]]
    colour, opaque = (
        resize(channels[None], *sides)[0] for channels in (part[..., :3], part[..., 3:].expand(-1, -1, 3))
    )
    image = torch.zeros(height, width, 4)
    y, x = (height - sides[0]) // 2, (width - sides[1]) // 2
    image[y : y + sides[0], x : x + sides[1]] = torch.cat([colour, opaque[..., :1]], dim=-1)
    return image


def border_pixels(images: Tensor) -> Tensor:
    """Return the border pixels (N, 2 (H + W), 3) of images (N, H, W, 3). Corner pixels occur twice."""
    return torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)


OBJECT_FRACTION = 0.8  # fraction of the sampled training pixels that is on or near the object
MIN_DIFFERENCE = 0.03  # minimum opacity of object pixels, or colour difference to the background in one channel


class Pixels:
    """All P = N * H * W pixels of N views as training rays, on the CPU.

    Attributes:
        origins, directions: (P, 3) each, in world units; directions have length 1.
        colours, background: (P, 3) in [0, 1]. The background is the median of the image's border pixels.
        opacity: (P, 1) opacity of the object in [0, 1], or None if unknown.
        near: int64 indices of the pixels on the object or within 1/32 of the shorter image side around it.
        far: (P,) bool, True for all other pixels.
    """

    def __init__(self, views: Views, opacity: Tensor | None = None) -> None:
        """Create one ray per pixel.

        `opacity` (N, H, W) in [0, 1] is the opacity of the object; None: unknown. Pixels are on the object if their
        opacity is above 0.03 (`MIN_DIFFERENCE`) or, if it is unknown, if their colour differs from the background by
        more than 0.03 in a channel.
        """
        images, side = views.images.cpu(), min(views.cameras.height, views.cameras.width)
        self.origins, self.directions = (part.reshape(-1, 3) for part in views.cameras.rays())
        self.colours = images.reshape(-1, 3)
        background = border_pixels(images).median(1).values[:, None, None].expand(images.shape)
        self.background = background.reshape(-1, 3)
        self.opacity = None if opacity is None else opacity.cpu().reshape(-1, 1)
        difference = (images - background).abs().amax(-1) if opacity is None else opacity.cpu()
        mask = (difference > MIN_DIFFERENCE).float()[:, None]
        margin = max(1, round(side / 16 / 2))
        near = F.max_pool2d(mask, 2 * margin + 1, 1, margin).flatten()
        self.near, self.far = near.nonzero()[:, 0], near == 0

    def composite(self, indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the target colours and background colours, (K, 3) each, of the pixels with `indices` (K,).

        The colours are in [0, 1]. If the opacity is known, the background is a random colour per pixel, sampled with
        the CPU generator `rng`, and replaces the image's background in the target. If it is unknown, the target is the
        pixel's colour, and the background is the median colour of the image's border.
        """
        colours, background = self.colours[indices], self.background[indices]
        if self.opacity is None:
            return colours, background
        random = torch.rand(background.shape, generator=rng)
        return colours + (1 - self.opacity[indices]) * (random - background), random

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Sample pixel indices (count,) with replacement: 80% from pixels on or near the object, the others from all.

        An index counts the pixels of all views in order, as in `colours`. If there are no pixels on the object, all
        indices are sampled from all pixels.
        """
        n_near = round(OBJECT_FRACTION * count) if len(self.near) else 0
        positions = torch.randint(max(1, len(self.near)), (n_near,), generator=rng)
        return torch.cat([self.near[positions], torch.randint(len(self.colours), (count - n_near,), generator=rng)])


@dataclass(frozen=True)
class Request:
    """Request for N images of a scene from new cameras.

    `scene` is the name of the scene, and `target` has the N new cameras. The sampler gets the input views `condition`
    (images with cameras, or None), the prompt `text`, or both. A sampler that reads existing images finds the N views
    by `numbers`, the frame numbers in the scene's file names. `seed` is the seed of the sampler's random numbers.
    `origin` is the point in the world of the scene's files that is the origin of the cameras.
    """

    scene: str  # name of the scene
    condition: Views | None  # input views of the scene; None: there are none
    target: Cameras  # N cameras of the novel views
    numbers: tuple[int, ...]  # frame numbers of the N novel views, as in the scene's file names
    text: str = ""  # prompt for text-conditioned samplers
    seed: int = 0  # seed of the sampler's random numbers
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)  # point in the world of the scene's files that is the cameras' origin


class NovelViewSampler(Protocol):
    """Interface of novel-view samplers, which generate images of a scene from new cameras.

    A sampler implements two methods. `__call__` takes a list of requests; a `Request` has N target cameras and input
    views, a prompt or both. It returns one tensor per request: the images (N, H, W, 3) in [0, 1]. `fingerprint` returns
    a string that identifies the sampler's weights, settings and files. Plug-ins add samplers with
    `threedgen.config.registry.register("sampler", ...)`.
    """

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        """Return for each request the images (N, H, W, 3) in [0, 1], on the CPU, of its N target cameras.

        H and W are the size of the target cameras or the sampler's own resolution. The images must not depend on the
        other requests. Raises ConfigError if the sampler cannot serve a request.
        """

    def fingerprint(self) -> str:
        """Return a string that identifies what determines the sampler's images: weights, settings and files.

        Stored images are used again only if this string is unchanged.
        """
