"""Words for the side from which one looks, and Perp-Neg: what a prompt can do against a face on every side.

A prior without cameras draws what it has seen most, the front. DreamFusion (section 3.2) appends ", front view" and
the like by the camera's direction; Perp-Neg (Armandpour et al. 2023) goes over from one side's text to the next
smoothly and pushes away from the neighbouring ones. Both are options of the prompt: any prior and any loss take them.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from threedgen.geometry.poses import wrap_angle
from threedgen.geometry.rigs import Rig
from threedgen.guidance.diffusion import Conditions, Negatives
from threedgen.guidance.distillation.options import ViewPromptsConfig

DIRECTIONS = ("side", "front", "back", "overhead")

# Weights of the negative texts as a exp(-b r) + c, from threestudio: of the front and the side between front
# and side, of the side and the front between side and back. r grows from 0 to 1 towards the text itself, where the
# weight of the text ends at zero; the front is never wanted at the back.
FRONT_OF_SIDE = SIDE_OF_FRONT = (4.0, 0.5, -2.426)
SIDE_OF_BACK = (1.0, 0.5, -0.606)
FRONT_OF_BACK = (1.0, 0.5, 0.967)


def prompts(prompt: str, negative: str, options: ViewPromptsConfig) -> list[str]:
    """What has to be encoded, in the order in which ``view_text`` expects it."""
    words = [getattr(options, direction) for direction in DIRECTIONS] if options.enabled else []
    return [prompt, negative, *(prompt + word for word in words)]


def view_text(text: Tensor, rig: Rig, options: ViewPromptsConfig) -> Conditions:
    """``text`` (2 or 6,L,D), the embeddings of ``prompts``, as the B cameras of the ``rig`` need them."""
    if not options.enabled:
        return Conditions((text[:1], text[1:2]))
    if options.perp_neg:
        return _perp_neg(text[1:2], text[2:], rig, options)
    return Conditions((text[2:][direction(rig, options).to(text.device)], text[1:2]))


def direction(rig: Rig, options: ViewPromptsConfig) -> Tensor:
    """(B,) int64, where in ``DIRECTIONS`` each camera belongs; azimuth 0 is the front, above ``overhead_above`` all is
    overhead.
    """
    turn, steep = torch.rad2deg(wrap_angle(rig.azimuth).abs()), torch.rad2deg(rig.elevation)
    found = torch.zeros(len(rig.azimuth), dtype=torch.long, device=turn.device)
    found[turn < options.front_within] = 1
    found[turn > 180 - options.back_within] = 2
    found[steep > options.overhead_above] = 3
    return found


def _perp_neg(uncond: Tensor, sides: Tensor, rig: Rig, options: ViewPromptsConfig) -> Conditions:
    """Text between two sides, in proportion to the angle, and two negatives for each image.

    From overhead there is no such order: that text alone, without negatives.
    """
    overhead = (direction(rig, options) == 3).to(sides.device)
    turn = (wrap_angle(rig.azimuth).abs() / (pi / 2)).to(sides)  # 0 front, 1 side, 2 back
    fronts = turn < 1
    near = torch.where(fronts, 1 - turn, 2 - turn)  # 1 at the front, or at the side; 0 at the other end
    side, front, back, above = sides
    share = near[:, None, None]
    cond = torch.where(fronts[:, None, None], share * front + (1 - share) * side, share * side + (1 - share) * back)
    cond = torch.where(overhead[:, None, None], above, cond)
    first = torch.where(fronts[:, None, None], front, side)
    second = torch.where(fronts[:, None, None], side, front)
    weights = torch.where(
        fronts,
        torch.stack([_decay(FRONT_OF_SIDE, near), _decay(SIDE_OF_FRONT, 1 - near)]),
        torch.stack([_decay(SIDE_OF_BACK, near), _decay(FRONT_OF_BACK, near)]),
    )
    weights = torch.where(overhead, 0.0, weights).clamp(min=0)
    return Conditions((cond, uncond), negatives=Negatives(torch.stack([first, second]), weights))


def _decay(constants: tuple[float, float, float], r: Tensor) -> Tensor:
    a, b, c = constants
    return a * torch.exp(-b * r) + c
