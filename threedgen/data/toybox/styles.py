"""Styles of toybox objects. A style replaces the solids of an object and keeps its caption."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from .builder import RADIUS
from .primitives import BOX, DOME, TORUS, Asset, Primitive

Style = Literal["plain", "blocks"]


def blocks(asset: Asset) -> Asset:
    """Replace each solid by its bounding box, and scale the asset to fit the ball of radius ``RADIUS``."""
    boxes = replace(asset, primitives=tuple(block(solid) for solid in asset.primitives))
    reach = max(float(np.linalg.norm(boxes.mesh()[0], axis=1).max()), 1e-6)
    return boxes.move_and_scale(0.0, min(1.0, RADIUS / reach))


def block(solid: Primitive) -> Primitive:
    """Return the bounding box of a solid as a BOX solid, aligned with the local axes."""
    low, high = {DOME: (0.0, 1.0), TORUS: (-solid.param, solid.param)}.get(solid.kind, (-1.0, 1.0))
    middle, half = np.array([0, 0, (low + high) / 2]), np.array([1, 1, (high - low) / 2])
    return replace(solid, kind=BOX, matrix=solid.matrix * half, centre=solid.centre + solid.matrix @ middle)


STYLES: dict[Style, Callable[[Asset], Asset]] = {"plain": lambda asset: asset, "blocks": blocks}
