"""Materials: map features and normals of samples to colours in [0, 1], unlit or lit by a point light."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from threedgen.config import Config

from .options import DiffuseMaterialConfig

Mode = Literal["albedo", "textureless", "diffuse"]


class Shading(NamedTuple):
    """Shading mode of one render, equal for the whole batch, and intensities of the ambient and the point light.

    Mode "albedo" is unlit. "textureless" shows the light on a white surface. "diffuse" multiplies light and albedo.
    """

    mode: Mode = "albedo"
    ambient: float = 1.0
    diffuse: float = 0.0

    @property
    def lit(self) -> bool:
        """True if the colours depend on normals."""
        return self.mode != "albedo"


ALBEDO = Shading()


def albedo(features: Tensor) -> Tensor:
    """Return colours (N, F) in [0, 1]: the sigmoid of features (N, F)."""
    return torch.sigmoid(features)


def shade(features: Tensor, normal: Tensor, position: Tensor, light: Tensor, shading: Shading) -> Tensor:
    """Return lit colours (N, 3): the light for a textureless shading, light * albedo for a diffuse one.

    The light is diffuse * max(0, n . l) + ambient: Lambert's law for a point light without fall-off with distance.

    Args:
        features: (N, 3) raw features.
        normal, position: (N, 3) unit normals and world positions of the points.
        light: (N, 3) or (3,) world positions of the lights.
    """
    to_light = functional.normalize(light - position, dim=-1)
    cosine = (normal * to_light).sum(-1, keepdim=True).clamp(min=0)
    brightness = shading.diffuse * cosine + shading.ambient
    return brightness.expand(-1, 3) if shading.mode == "textureless" else albedo(features) * brightness


class NoMaterial:
    """Unlit material: the colour is the sigmoid of the features (MVDream's default)."""

    uses_light = False
    options: Config | None

    def __init__(self, options: Config | None = None):
        self.options = options

    def sample_shading(
        self, step: int = 0, training: bool = False, generator: torch.Generator | None = None
    ) -> Shading:
        """Return the unlit shading. It uses no random numbers."""
        return ALBEDO

    def __call__(
        self,
        features: Tensor,
        normal: Tensor | None = None,
        position: Tensor | None = None,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Tensor:
        """Return colours (N, 3) in [0, 1] of features (N, 3). Only a lit shading uses the other tensors, see `shade`.

        Raises ValueError if a lit shading lacks normals, positions or a light.
        """
        if not (shading.lit and self.uses_light):
            return albedo(features)
        if normal is None or position is None or light is None:
            raise ValueError(f"missing input for shading={shading.mode!r}. Pass normals, positions and a light.")
        return shade(features, normal, position, light, shading)


class DiffuseMaterial(NoMaterial):
    """Lambertian material. Random lit and textureless training steps keep colour from imitating shape (DreamFusion)."""

    uses_light = True
    options: DiffuseMaterialConfig

    def __init__(self, options: DiffuseMaterialConfig | None = None):
        super().__init__(options or DiffuseMaterialConfig())

    def sample_shading(
        self, step: int = 0, training: bool = False, generator: torch.Generator | None = None
    ) -> Shading:
        """Return the shading of one render: unlit before step `ambient_only_steps`, later random in training."""
        options = self.options
        if not training:
            unlit = step < options.ambient_only_steps or options.diffuse == 0
            return ALBEDO if unlit else Shading("diffuse", options.ambient, options.diffuse)
        # always three random numbers, so that no option changes the later ones
        coin, kind, strength = torch.rand(3, generator=generator).tolist()
        if step < options.ambient_only_steps or coin >= options.diffuse_probability:
            return ALBEDO
        mode: Mode = "textureless" if kind < options.textureless_probability else "diffuse"
        if options.soft_shading:
            return Shading(mode, 1.0 - strength, 1.0 - (1.0 - strength))
        return Shading(mode, options.ambient, options.diffuse)
