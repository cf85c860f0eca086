"""Matte network, which predicts the opacity of the object in a sampled image on a plain grey background.

A 3D fit to images alone confuses grey or shaded parts of the object with the background. Known opacity prevents this.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.config.errors import ConfigError, one_line
from threedgen.geometry.image_file import read_foreground
from threedgen.geometry.views import border_pixels, resize
from threedgen.guidance.options import ReferenceConfig
from threedgen.guidance.weights import files, other_models
from threedgen.guidance.weights.loading import CONFIG, TENSORS
from threedgen.guidance.weights.other_models import GRABCUT, REMBG
from threedgen.run.arrays import Array
from threedgen.run.disk import write_json

BATCH, MAX_SIZE = 16, 1024
"""Number of images that the network processes together, and the largest `size` of its input in pixels."""
MAX_BORDER = 0.25
"""Largest fraction of the pixels at the image border that a matte network may take for the object. With more, it has
not found the background."""
GRABCUT_SIZE, GRABCUT_MARGIN, GRABCUT_RADIUS, MIN_PART = 256, 0.1, 0.25, 0.03
"""Settings of GrabCut. GRABCUT_SIZE: longer side in pixels of the image that is segmented. GRABCUT_MARGIN: width of the
margin that is background, and GRABCUT_RADIUS: radius of the central disc that is probably the object, as fractions of
the image sides. MIN_PART: smallest area of a part of the object, as a fraction of the largest part; smaller parts and
lines of two pixels, such as edges of walls, are background."""


class Matte(nn.Module):
    """U-Net (Ronneberger et al. 2015) that predicts the opacity of the object in an image of fixed size.

    The method `opacity` applies the network to images of any size.
    """

    def __init__(self, size: int = 128, channels: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        """Build the network.

        Args:
            size: pixels per side of the input: a multiple of 2 ** len(channels), at most 1024; else ValueError.
            channels: number of channels of each level, from fine to coarse; each level halves the side.
        """
        super().__init__()
        self.sizes: dict[str, Any] = {"size": size, "channels": channels}
        if not 0 < size <= MAX_SIZE or size % 2 ** len(channels):
            raise ValueError(f"size {size} should be a multiple of 2 ** levels, {MAX_SIZE} at most")
        finer, coarser = channels[:-1], channels[1:]
        self.stem = convolution(3 * 2 * 2, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(convolution(a, b, 2), convolution(b, b)) for a, b in zip(finer, coarser, strict=True)
        )
        self.up = nn.ModuleList(convolution(a + b, a) for a, b in zip(finer, coarser, strict=True))
        self.out = nn.Conv2d(channels[0], 2 * 2, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the opacity (B, S, S) of images (B, 3, S, S) in [0, 1], S = `size`."""
        x = F.pixel_unshuffle((x - 0.5) * 4, 2)
        y = self.stem(x.contiguous(memory_format=torch.channels_last))
        levels = []
        for down in self.down:
            levels.append(y)
            y = down(y)
        for up, fine in zip(reversed(self.up), reversed(levels), strict=True):
            y = up(torch.cat([fine, F.interpolate(y, size=fine.shape[-2:])], 1))
        return F.pixel_shuffle(self.out(y).float(), 2)[:, 0]

    def save(self, path: Path) -> None:
        """Write config.json and a safetensors file (float16) to the folder `path`; replace a saved model.

        Raises ConfigError if the folder has files, but no saved model, or a weight overflows in float16.
        """
        with files.replaced_folder(path, CONFIG) as part:
            write_json(part / CONFIG, {"_class_name": type(self).__name__, **self.sizes})
            files.save_tensors(self, part / TENSORS)

    @classmethod
    def load(cls, weights: str) -> "Matte":
        """Load a frozen network on the CPU from "toybox-matte" (part of threedgen) or a folder that `save` wrote.

        Raises ConfigError if the files are missing or damaged.
        """
        path = other_models.matte_folder(weights)
        files.check_sums(path)
        config = files.read_json(path / CONFIG)
        known = {key: config[key] for key in ("size", "channels") if key in config}
        return files.build_from_tensors(lambda: cls(**known), files.read_tensors(path / TENSORS), "matte").eval()

    @torch.no_grad()
    def opacity(self, images: Tensor) -> Tensor:
        """Return the opacity (B, H, W) in [0, 1] of the object in images (B, H, W, 3) in [0, 1] of any size."""
        size = self.sizes["size"]
        x = resize(images.float(), size, size).permute(0, 3, 1, 2)
        found = torch.cat([self(part).sigmoid() for part in x.split(BATCH)])
        return resize(found[..., None], *images.shape[1:3])[..., 0]


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


def _by_grabcut(rgb: Array) -> Array:
    # GrabCut (Rother et al. 2004) starts from the colours inside and outside of a disc in the middle
    import cv2

    height, width = rgb.shape[:2]
    scale = min(1.0, GRABCUT_SIZE / max(height, width))
    sides = w, h = max(16, round(width * scale)), max(16, round(height * scale))
    small = cv2.resize(np.round(rgb * 255).astype(np.uint8), sides, interpolation=cv2.INTER_AREA)
    x, y = round(w * GRABCUT_MARGIN), round(h * GRABCUT_MARGIN)
    mask, models = np.full((h, w), cv2.GC_BGD, np.uint8), np.zeros((2, 65))
    mask[y : h - y, x : w - x] = cv2.GC_PR_BGD
    down, right = np.mgrid[:h, :w]
    mask[np.hypot((down + 0.5) / h - 0.5, (right + 0.5) / w - 0.5) < GRABCUT_RADIUS] = cv2.GC_PR_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(small, mask, None, models[:1], models[1:], 5, cv2.GC_INIT_WITH_MASK)
    solid = cv2.morphologyEx(mask & 1, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))  # odd values are foreground
    _, label, statistics, _ = cv2.connectedComponentsWithStats(solid)
    area = statistics[:, cv2.CC_STAT_AREA] * (np.arange(len(statistics)) > 0)  # 0: background
    solid = (area > MIN_PART * area.max())[label].astype(np.float32)
    return np.asarray(cv2.resize(solid, (width, height)))


def reference_foreground(options: ReferenceConfig) -> Array | None:
    """Return the cut-out object of a prior's reference image, RGBA (h, w, 4) in [0, 1]; None without an image.

    Alpha is the object's opacity, float32 like the colours, which are not multiplied by it. Its source is the first of
    these that applies:

    1. the file, if the image has transparency,
    2. the background remover `options.matte`, if that is not None,
    3. the colours: the background must have one colour and becomes transparent.

    Raises ConfigError if the image cannot be read, its object cannot be cut out, or the background remover is missing.
    """
    return None if options.image is None else read_foreground(options.image, remover(options.matte))


def remover(name: str | None) -> Callable[[Array], Array] | None:
    """Load a function that removes backgrounds: it maps an image (H, W, 3) in [0, 1] to the object's opacity (H, W).

    The opacity is float32 in [0, 1]. `name` is "rembg" (the package of that name), "grabcut" (OpenCV), "toybox-matte"
    (a `Matte` that comes with threedgen) or the folder of a saved `Matte`. If it is None, the result is None. Raises
    ConfigError if a package is not installed, or weights are missing or damaged. The returned function raises
    ConfigError if rembg cannot load its network, or if a `Matte` finds no background, as in a photo of a room.
    """
    if name is None:
        return None
    other_models.check_matte(name)
    if name == REMBG:
        from rembg import remove

        def by_rembg(rgb: Array) -> Array:
            try:
                mask = remove(np.round(rgb * 255).astype(np.uint8), only_mask=True)
            except Exception as error:  # of the download or of the network's file
                problem = f"rembg cannot load its network ({one_line(error)[:120]}). Take matte={GRABCUT}"
                raise ConfigError(problem, "matte") from error
            return np.asarray(mask, np.float32) / 255

        return by_rembg
    if name == GRABCUT:
        return _by_grabcut
    net = Matte.load(name)

    def by_network(rgb: Array) -> Array:
        opacity = net.opacity(torch.from_numpy(np.asarray(rgb, np.float32))[None])
        if (border_pixels(opacity[..., None]) > 0.5).float().mean() > MAX_BORDER:
            others = f"Take matte={REMBG} or matte={GRABCUT}, or a photo with a plain background"
            raise ConfigError(
                f"{name} finds objects on plain backgrounds, and finds no background here. {others}", "matte"
            )
        return opacity[0].numpy()

    return by_network
