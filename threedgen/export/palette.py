"""Palettes: the colours that the option `palette` names, and the shift of a texture's colours to them.

The functions import numpy and other libraries when they run, because the config classes import this module.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.run.arrays import Array
from threedgen.run.folder import user_path

IMAGE_COLOURS = 8  # number of colours that are taken from an image
MAX_COLOURS = 64
IMAGE_SIDE = 256  # longer side in pixels to which the image is reduced
LAB_WEIGHTS, GROUP_GAP = (0.3, 1.0, 1.0), 25.0
"""Weights of L, a and b in the distance between two colours, and minimum mean distance between two groups of colours;
closer groups are merged."""
SOFTNESS = 4.0  # Lab distance in which the weight of a colour group falls to 1/e
BLOCK = 1 << 18  # number of texels per computation, which limits the memory


def read_palette(text: str) -> str:
    """Return a palette as comma-separated hex colours, such as "#aabbcc,#d91a1a".

    `text` has comma-separated colours (#rgb, #rrggbb, colour names of CSS), or is the path of an image, from which the
    8 main colours (`IMAGE_COLOURS`) are taken. Raises ValueError if a colour is invalid, the image cannot be read, or
    there are no colours or more than 64 (`MAX_COLOURS`).
    """
    from threedgen.geometry.image_file import SUFFIXES

    words = [word.strip() for word in text.strip().strip("[]").split(",")]
    if Path(text.strip()).suffix.lower() in SUFFIXES:
        colours = _image_colours(text.strip())
    else:
        colours = [_colour(word.strip("'\" ")) for word in words if word]
    if not 1 <= len(colours) <= MAX_COLOURS:
        raise ValueError(f"should have 1 to {MAX_COLOURS} colours, such as '#e8d5b0,brown', or be an image file")
    return ",".join(dict.fromkeys(colours))


Palette = Annotated[str | None, AfterValidator(lambda text: None if text is None else read_palette(text))]


def _colour(word: str) -> str:
    from PIL import ImageColor

    if re.fullmatch(r"#([0-9A-Fa-f]{3}){1,2}", word) or word.lower() in ImageColor.colormap:
        return _hex(ImageColor.getrgb(word)[:3])
    guess = did_you_mean(nearest(word, ImageColor.colormap))
    raise ValueError(
        f"{short(word)} is not a colour{guess or '.'} Use colours such as '#e8d5b0,brown', or the path of an image"
    )


def _hex(rgb: Iterable[int]) -> str:
    return "#" + bytes(rgb).hex()


def _image_colours(path: str) -> list[str]:
    # centres of k-means in Lab, most frequent first
    import numpy as np
    from scipy.cluster.vq import kmeans2
    from skimage.color import lab2rgb, rgb2lab

    from threedgen.geometry.image_file import load_image

    try:
        pixels = np.asarray(load_image(user_path(path, "palette"), max_side=IMAGE_SIDE)).astype(np.float64) / 255
    except ConfigError as error:
        raise ValueError(error.problem) from None
    pixels = pixels.reshape(-1, pixels.shape[-1])
    pixels = pixels[pixels[:, 3] > 0.5, :3] if pixels.shape[1] == 4 else pixels
    if not len(pixels):
        raise ValueError("is a fully transparent image")
    lab = rgb2lab(pixels)
    count = min(IMAGE_COLOURS, len(np.unique(pixels, axis=0)))
    centres, label = kmeans2(lab, count, minit="++", rng=np.random.default_rng(0))
    frequency = np.bincount(label, minlength=count)
    order = [k for k in np.argsort(-frequency, kind="stable") if frequency[k]]
    return [_hex(row.tolist()) for row in np.round(255 * np.clip(lab2rgb(centres[order]), 0, 1)).astype(int)]


def to_palette(texture: Array, covered: Array, palette: str) -> Array:
    """Return a base colour texture whose colours are shifted to a palette.

    The colours of the covered texels are clustered into groups in Lab. Each group is shifted to the palette colour that
    is nearest to its mean (CIEDE2000). Differences of lightness stay: darker and lighter texels become shades and tints
    of the palette colour. A colour between two groups gets a mean of both shifts; the nearer group has more weight. The
    other texels are shifted like covered ones of equal colour.

    Args:
        texture: (H, W, 3) sRGB in [0, 1].
        covered: (H, W) bool, texels inside a face.
        palette: comma-separated hex colours, such as "#aabbcc,#d91a1a", as `read_palette` returns them.

    Returns:
        (H, W, 3) float32, sRGB in [0, 1].
    """
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist
    from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab

    from threedgen.export.surface.unseen import colour_centres

    rgb = np.array([list(bytes.fromhex(colour[1:])) for colour in palette.split(",")]) / 255
    own, choices = rgb2lab(np.clip(texture[covered], 0, 1)).astype(np.float64), rgb2lab(rgb)
    centres = colour_centres(own)
    count = np.bincount(cKDTree(centres).query(own)[1], minlength=len(centres))
    group = np.zeros(len(centres), np.intp)  # lights and darks of a colour are one group
    if len(centres) > 1:
        group = fcluster(linkage(centres * LAB_WEIGHTS, "average"), GROUP_GAP, "distance") - 1
    weights = np.eye(group.max() + 1)[group] * np.maximum(count, 1)[:, None]
    means = weights.T @ centres / weights.sum(0)[:, None]
    entry = deltaE_ciede2000(means[:, None], choices[None]).argmin(1)[group]  # palette index of each centre
    share = np.bincount(entry, count, len(choices))
    lightness = np.bincount(entry, count * centres[:, 0], len(choices)) / np.maximum(share, 1)
    flat = np.clip(texture.reshape(-1, 3), 0, 1)
    result = np.empty(flat.shape, np.float32)
    for start in range(0, len(flat), BLOCK):
        lab = rgb2lab(flat[start : start + BLOCK])
        distance = cdist(lab, centres)
        weight = np.exp((distance.min(1, keepdims=True) - distance) / SOFTNESS)
        weight /= weight.sum(1, keepdims=True)
        target = weight @ choices[entry]
        light = np.clip(lab[:, 0] - weight @ lightness[entry] + target[:, 0], 0, 100)
        dark, bright = light / np.maximum(target[:, 0], 1), (100 - light) / np.maximum(100 - target[:, 0], 1)
        chroma = np.minimum(np.minimum(dark, bright), 1)[:, None] * target[:, 1:]
        result[start : start + BLOCK] = lab2rgb(np.column_stack([light, chroma]))
    return np.clip(result, 0, 1).reshape(texture.shape)
