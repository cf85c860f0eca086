"""What a point of the field looks like: its colour alone, or lit by a point light.

Features and normals come from the field, one row for each sample; all colours are in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from .options import DiffuseMaterialConfig

Mode = Literal["albedo", "textureless", "diffuse"]


class Shading(NamedTuple):
    """How one call shades, the same for its whole batch: what is shown, and how strong the lights are."""

    mode: Mode = "albedo"
    ambient: float = 1.0
    diffuse: float = 0.0

    @property
    def lit(self) -> bool:
        """Does it depend on normals?"""
        return self.mode != "albedo"


ALBEDO = Shading()


def albedo(features: Tensor) -> Tensor:
    """Features (N, F) to colours (N, F) in [0, 1]."""
    return torch.sigmoid(features)


def shade(features: Tensor, normal: Tensor, position: Tensor, light: Tensor, shading: Shading) -> Tensor:
    """Colours (N, 3) of lit matter: the light alone (textureless) or light times albedo (diffuse).

    Lambert's law for a point light without fall-off, and ambient light: diffuse * max(0, n.l) + ambient. normal (N, 3)
    unit, position (N, 3), light (N, 3) or (3,) where the lights are.
    """
    towards = functional.normalize(light - position, dim=-1)
    cosine = (normal * towards).sum(-1, keepdim=True).clamp(min=0)
    bright = shading.diffuse * cosine + shading.ambient
    return bright.expand(-1, 3) if shading.mode == "textureless" else albedo(features) * bright


class NoMaterial:
    """The sigmoid of the features, whatever the light: MVDream's default.

    `draw` picks the shading of one call of the renderer, the call itself gives colours.
    """

    heeds_light = False

    def __init__(self, options: Any = None):
        self.options = options

    def draw(self, step: int = 0, training: bool = False, generator: torch.Generator | None = None) -> Shading:
        """Always the albedo; draws nothing."""
        return ALBEDO

    def __call__(
        self,
        features: Tensor,
        normal: Tensor | None = None,
        position: Tensor | None = None,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Tensor:
        """Colours (N, 3) of features (N, 3). Raises ValueError if a lit mode lacks normals, positions or the light."""
        if not (shading.lit and self.heeds_light):
            return albedo(features)
        if normal is None or position is None or light is None:
            raise ValueError(f"shading {shading.mode!r} needs normals, positions and a light position")
        return shade(features, normal, position, light, shading)


class DiffuseMaterial(NoMaterial):
    """Albedo first; later a random mix of albedo, lit albedo and lit white: texture cannot fake shape."""

    heeds_light = True

    def __init__(self, options: DiffuseMaterialConfig | None = None):
        super().__init__(options or DiffuseMaterialConfig())

    def draw(self, step: int = 0, training: bool = False, generator: torch.Generator | None = None) -> Shading:
        """The shading of one call: the albedo before ``ambient_only_steps``.

        In training three numbers are drawn whatever comes of them, so that no option shifts the stream.
        """
        options = self.options
        if not training:
            unlit = step < options.ambient_only_steps or options.diffuse == 0
            return ALBEDO if unlit else Shading("diffuse", options.ambient, options.diffuse)
        coin, kind, strength = torch.rand(3, generator=generator).tolist()
        if step < options.ambient_only_steps or coin >= options.diffuse_probability:
            return ALBEDO
        mode: Mode = "textureless" if kind < options.textureless_probability else "diffuse"
        if options.soft_shading:
            return Shading(mode, 1.0 - strength, 1.0 - (1.0 - strength))
        return Shading(mode, options.ambient, options.diffuse)
