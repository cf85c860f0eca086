"""Materials: map features and normals of samples to colours in [0, 1], unlit or lit by a point light."""

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from threedgen.config import Config

from .options import DiffuseMaterialConfig

Mode = Literal["albedo", "textureless", "diffuse"]


class Shading(NamedTuple):
    """Shading mode of one render, and intensities of its lights.

    Attributes:
        mode: "albedo" shows the surface colours unlit, "textureless" shows the light on a white surface, "diffuse"
            multiplies light and surface colours.
        ambient, diffuse: intensities of the ambient light and of the point light; their sum is the largest brightness.
    """

    mode: Mode = "albedo"
    ambient: float = 1.0
    diffuse: float = 0.0

    @property
    def lit(self) -> bool:
        return self.mode != "albedo"


ALBEDO = Shading()


class Material:
    """Unlit material: the colour is the sigmoid of three features (MVDream's default). Base class of all materials.

    A call of a material maps features (N, F) of N points to colours (N, 3). For each render, `sample_shading` gets the
    optimisation step, and whether it is a training render, and returns a `Shading`: the mode and the intensities of the
    lights. In this class, the mode is always "albedo" (unlit). Subclasses override both methods. `DiffuseMaterial` also
    has the modes "diffuse" (lit) and "textureless" (lit, on a white surface).
    """

    def __init__(self, options: Config | None = None) -> None:
        self.options = options

    def sample_shading(self, step: int = 0, training: bool = False, generator: Generator | None = None) -> Shading:
        """Return the shading mode and light intensities of one render at optimisation step `step`.

        This base class always returns the unlit mode. Subclasses may choose a random one in training, with the CPU
        generator `generator`.
        """
        return ALBEDO

    def __call__(
        self,
        features: Tensor,
        normal: Tensor | None = None,
        position: Tensor | None = None,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Tensor:
        """Return the colours (N, 3) in [0, 1] of N points. This base class uses only `features`.

        Args:
            features: (N, F) raw features of the points, F >= 3. This class uses the first three, for RGB.
            normal, position: (N, 3) unit normals in world coordinates and world positions of the points; needed by lit
                modes only.
            light: (N, 3) or (3,) world positions of the lights; needed by lit modes only.
            shading: shading mode and light intensities.
        """
        return torch.sigmoid(features[:, :3])


class DiffuseMaterial(Material):
    """Lambertian material (DreamFusion). Some training steps are lit, so that the albedo cannot imitate the shape.

    A call maps features (N, F) of N points to colours (N, 3). In the mode "albedo" (unlit), the colour is the albedo,
    the sigmoid of the first three features. In the mode "diffuse" it is albedo * brightness, in the mode "textureless"
    only the brightness. The brightness is diffuse * max(0, n . l) + ambient: diffuse and ambient are the light
    intensities, n is the unit normal, and l the unit direction to the point light, which does not get weaker with
    distance.

    `sample_shading` chooses mode and light intensities of each render.
    """

    options: DiffuseMaterialConfig

    def __init__(self, options: DiffuseMaterialConfig | None = None) -> None:
        super().__init__(options or DiffuseMaterialConfig())

    def sample_shading(self, step: int = 0, training: bool = False, generator: Generator | None = None) -> Shading:
        """Return the shading of one render: "albedo" (unlit), "diffuse" (lit), or "textureless" (lit, without colours).

        Before step `ambient_only_steps`, all renders are unlit. From that step on:

        - A training render is lit with the probability `diffuse_probability`. A lit one is "textureless" with the
          probability `textureless_probability`, else "diffuse". With `soft_shading`, its light intensities are random.
          The CPU generator `generator` determines these choices.
        - An evaluation render is not random: "diffuse" if the option `diffuse` is above 0, else unlit.
        """
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

    def __call__(
        self,
        features: Tensor,
        normal: Tensor | None = None,
        position: Tensor | None = None,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Tensor:
        albedo = torch.sigmoid(features[:, :3])
        if not shading.lit:
            return albedo
        assert normal is not None and position is not None and light is not None
        cosine = (normal * normalize(light - position, dim=-1)).sum(-1, keepdim=True).clamp(min=0)
        brightness = shading.diffuse * cosine + shading.ambient
        return brightness.expand(-1, 3) if shading.mode == "textureless" else albedo * brightness
