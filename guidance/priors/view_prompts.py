"""View-dependent prompts and Perp-Neg, which reduce objects with several fronts (Janus) for priors without cameras.

DreamFusion (section 3.2) appends ", front view" or another direction to the prompt, depending on the camera. Perp-Neg
(Armandpour et al. 2023) interpolates the embeddings of adjacent directions and uses them as negative prompts.
"""

from math import pi

import torch
from torch import Tensor

from threedgen.geometry.poses import wrap_angle
from threedgen.geometry.rigs import Rig
from threedgen.guidance.guidance import Condition, Negatives
from threedgen.guidance.losses.options import ViewPromptsConfig
from threedgen.run.memory import to_device

DIRECTIONS = ("side", "front", "back", "overhead")
OVERHEAD = 60.0
"""Elevation in degrees above which a view is overhead (DreamFusion)."""

# Constants (a, b, c) of the weight a exp(-b r) + c of a negative prompt, from threestudio. A camera between front and
# side has the negative prompts front and side, a camera between side and back has side and front. r is 1 where the
# camera looks at the direction of the negative prompt; its weight is zero there. FRONT_OF_BACK stays positive.
FRONT_OF_SIDE = SIDE_OF_FRONT = (4.0, 0.5, -2.426)
SIDE_OF_BACK = (1.0, 0.5, -0.606)
FRONT_OF_BACK = (1.0, 0.5, 0.967)


def prompts(prompt: str, negative: str, options: ViewPromptsConfig) -> list[str]:
    """Return the texts to encode: prompt, negative prompt and, if `options.enabled`, four prompts with a direction.

    The directions are side, front, back and overhead, in this order: "PROMPT, side view" and so on.
    """
    return [prompt, negative, *(f"{prompt}, {direction} view" for direction in DIRECTIONS if options.enabled)]


def view_text(text: Tensor, rig: Rig, options: ViewPromptsConfig) -> Condition:
    """Return the `Condition` of the images of the B cameras in `rig`: prompts and negative prompts.

    `text` has the embeddings of the texts from `prompts`, L tokens with D features each: (2, L, D) for prompt and
    negative prompt; (6, L, D) if `options.enabled`, where the other four are the prompt with "side view", "front view",
    "back view" and "overhead view". The result's attribute `text` is a pair of embeddings: the prompt, and the negative
    prompt (1, L, D). The prompt depends on the options:

    - `enabled` is False: one prompt for all cameras, (1, L, D).
    - `enabled` is True, `perp_neg` False: for each camera the prompt with its direction (see `direction`), (B, L, D).
    - Both are True (Perp-Neg, Armandpour et al. 2023): for each camera (B, L, D). Cameras with an elevation above 60
      degrees get "overhead view". For the others, the embedding changes linearly with the absolute azimuth: from "front
      view" at 0 to "side view" at 90 degrees, then to "back view" at 180 degrees.

    With Perp-Neg, the result also has `negatives`, two more negative prompts for each camera: embeddings (2, B, L, D)
    and weights (2, B) >= 0. The prompts are "front view" and "side view", in this order if the absolute azimuth is
    below 90 degrees, else in reverse order. A weight scales what guidance subtracts for its prompt. It is about 0 at
    the azimuth of the prompt and grows with the difference from it. If the elevation is above 60 degrees, both weights
    are 0.
    """
    if not options.enabled:
        return Condition((text[:1], text[1:2]))
    if options.perp_neg:
        return _perp_neg(text[1:2], text[2:], rig, options)
    return Condition((text[2:][to_device(direction(rig, options), text.device)], text[1:2]))


def direction(rig: Rig, options: ViewPromptsConfig) -> Tensor:
    """Return the view direction of each camera, (B,) int64: 0 side, 1 front (azimuth 0), 2 back, 3 overhead.

    `options` has the azimuth ranges of front and back; overhead is an elevation above 60 degrees at any azimuth.
    """
    turn, steep = torch.rad2deg(wrap_angle(rig.azimuth).abs()), torch.rad2deg(rig.elevation)
    found = torch.zeros(len(rig.azimuth), dtype=torch.long, device=turn.device)
    found[turn < options.front_within] = 1
    found[turn > 180 - options.back_within] = 2
    found[steep > OVERHEAD] = 3
    return found


def _perp_neg(uncond: Tensor, sides: Tensor, rig: Rig, options: ViewPromptsConfig) -> Condition:
    # `uncond` (1, L, D) embeds the negative prompt, `sides` (4, L, D) the DIRECTIONS. The result has text (B, L, D)
    # interpolated by azimuth, two negative prompts (2, B, L, D) and their weights (2, B), zero for overhead cameras.
    overhead = to_device(direction(rig, options) == 3, sides.device)
    turn = to_device(wrap_angle(rig.azimuth).abs() / (pi / 2), sides.device).to(sides)  # 0 front, 1 side, 2 back
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
    return Condition((cond, uncond), negatives=Negatives(torch.stack([first, second]), weights))


def _decay(constants: tuple[float, float, float], r: Tensor) -> Tensor:
    a, b, c = constants
    return a * torch.exp(-b * r) + c
