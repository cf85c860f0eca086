"""Reference pictures as MV-Adapter was trained with them."""

from __future__ import annotations

import torch
from torch import Tensor

from threedgen.geometry.views import resize

SHARE, GREY = 0.9, 0.5
"""Of a side, for the object's longer one; and the level of the grey behind it."""


def framed(cut: Tensor, height: int, width: int) -> Tensor:
    """Places an object in the middle of a grey picture (height,width,3), by ``SHARE`` as large as it.

    cut: (h,w,4) in [0,1], the object and how opaque it is, which somewhere is more than nothing.
    """
    rows, columns = (cut[..., 3] > 0).nonzero(as_tuple=True)
    (top, bottom), (left, right) = ((max(0, int(at.min()) - 1), int(at.max()) + 2) for at in (rows, columns))
    part = cut[top:bottom, left:right]
    part = torch.cat([part[..., :3] * part[..., 3:], part[..., 3:]], dim=-1)  # colours that are not seen do not bleed
    scale = SHARE * min(height / part.shape[0], width / part.shape[1])
    sides = [max(1, round(scale * side)) for side in part.shape[:2]]
    colour, opaque = (resize(half[None], *sides)[0] for half in (part[..., :3], part[..., 3:].expand(-1, -1, 3)))
    picture = torch.full((height, width, 3), GREY)
    y, x = (height - sides[0]) // 2, (width - sides[1]) // 2
    picture[y : y + sides[0], x : x + sides[1]] = (colour + (1 - opaque) * GREY).clamp(0, 1)
    return picture
