"""Preparation of reference images as in MV-Adapter's training."""

import torch
from torch import Tensor

from threedgen.geometry.views import resize

SHARE, GREY = 0.9, 0.5
"""Fraction of the image that the object's longer side fills, and grey level of the background."""


def framed(cut: Tensor, height: int, width: int) -> Tensor:
    """Return an image (height, width, 3) in [0, 1] of a cut-out object, scaled and centred on a grey background.

    Args:
        cut: RGBA image (h, w, 4) in [0, 1] with at least one pixel that is not transparent.
        height, width: size of the result in pixels.
    """
    rows, columns = (cut[..., 3] > 0).nonzero(as_tuple=True)
    (top, bottom), (left, right) = ((max(0, int(at.min()) - 1), int(at.max()) + 2) for at in (rows, columns))
    part = cut[top:bottom, left:right]
    part = torch.cat([part[..., :3] * part[..., 3:], part[..., 3:]], dim=-1)  # transparent colours do not bleed
    scale = SHARE * min(height / part.shape[0], width / part.shape[1])
    sides = [max(1, round(scale * side)) for side in part.shape[:2]]
    colour, opaque = (
        resize(channels[None], *sides)[0] for channels in (part[..., :3], part[..., 3:].expand(-1, -1, 3))
    )
    image = torch.full((height, width, 3), GREY)
    y, x = (height - sides[0]) // 2, (width - sides[1]) // 2
    image[y : y + sides[0], x : x + sides[1]] = (colour + (1 - opaque) * GREY).clamp(0, 1)
    return image
