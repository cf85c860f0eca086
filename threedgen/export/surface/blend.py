"""Blending of several images per texel by weights, as in MV-Adapter (Huang et al. 2024)."""

from dataclasses import dataclass

import numpy as np

from threedgen.run.arrays import Array

MIN_WEIGHT = 1e-5  # sum of weights below which a texel's colour is darkened in proportion


@dataclass(frozen=True)
class BlendOptions:
    """Rules for projecting several images onto a mesh's texture: which images colour a texel, and with which weights.

    The limits `error`, `cosine` and `opacity` decide which images colour a texel. The weight of an image is c^`power`,
    multiplied by the factors that `beside_edge`, `feather` and `window` describe. c is the cosine of the angle between
    the texel's normal and the direction to the camera, for perspective cameras divided by the distance to the camera.
    `error` and `jump` are fractions of the depth for perspective cameras, and in world units for orthographic ones.

    Attributes:
        error: an image colours a texel only if the texel is less than this far behind the surface that the camera sees.
        cosine: an image colours a texel only if the cosine of the angle in c is above this limit.
        jump: smallest step in the depth map that counts as a depth edge.
        beside_edge: factor in [0, 1] for texels beside a depth edge; 0: the image does not colour them.
        margin: a texel is beside a depth edge if it is within this number of image pixels of it.
        feather: distance from depth edges over which a factor rises from almost 0 to 1, as a fraction of the image
            height; 0: no such factor.
        opacity: an image colours a texel only if the image's opacity there, in [0, 1], is above this limit.
        power: exponent, above 0.
        window: True for a factor that falls from 1 at the image centre to almost 0 at the image borders.
    """

    error: float = 0.02  # maximum depth difference between texel and visible surface
    cosine: float = 0.01  # minimum cosine between the surface normal and the direction to the camera
    jump: float = 0.05  # smallest depth step that counts as a depth edge
    beside_edge: float = 1e-4  # factor of the weights next to a depth edge; 0: pixels there are not used
    margin: int = 1  # width of the zone next to a depth edge, pixels
    feather: float = 0.0  # distance from a depth edge over which weights rise, as a fraction of the image height
    opacity: float = 0.9  # minimum mask value of an image's pixels that are used
    power: float = 4.0  # exponent of the cosine in the weight
    window: bool = True  # whether weights decrease towards the image borders

    def valid(self, error: Array, cosine: Array, jump: Array, mask: Array | None = None) -> Array:
        """Return a bool mask (M,) of the texels that an image may colour.

        A texel is valid if error < self.error, cosine > self.cosine and mask > self.opacity. If `self.beside_edge` is
        0, jump < self.jump is a further condition; else `jump` has no effect here.

        All arguments are arrays (M,) with one value per texel. `error` and `jump` are fractions of the depth for
        perspective cameras, and in world units for orthographic cameras.

        Args:
            error: depth of the texel minus depth of the visible surface.
            cosine: cosine of the angle between surface normal and direction to the camera.
            jump: largest deviation of the depth map from a plane near the texel: 0 on a plane, large at a depth edge.
            mask: opacity of the image in [0, 1] at the texel; None: opaque.
        """
        visible = (error < self.error) & (cosine > self.cosine)
        visible = visible if mask is None else visible & (mask > self.opacity)
        return visible if self.beside_edge else visible & (jump < self.jump)

    def weight(self, cosine: Array, valid: Array) -> Array:
        """Return the weights (M,) of an image at M texels, without the factors for depth edges and image borders.

        The weight is max(cosine, 0)^self.power, or 0 where `valid` is False.

        Args:
            cosine: (M,) cosine of the angle between surface normal and direction to the camera. For perspective
                cameras, pass it divided by the distance to the camera, so that near images have larger weights.
            valid: (M,) bool, True where the image may colour the texel (see the method `valid`).
        """
        return np.where(valid, np.maximum(cosine, 0), 0) ** self.power


SCENE_BLEND = BlendOptions()
"""Options for views inside a scene. Near and frontal views have much larger weights than distant or oblique ones."""
OBJECT_BLEND = BlendOptions(
    error=1e-3, cosine=0.2, jump=0.1, beside_edge=0.0, margin=2, feather=0.03, power=3.0, window=False
)
"""Options for views around an object whose coordinates are in [-0.5, 0.5]. The limits are those of MV-Adapter. In
addition, weights rise with the distance from depth edges (`feather`), which hides seams of inconsistent images."""


class WeightedMean:
    """Accumulator for the weighted mean of the colours of N = `texels` texels over several images.

    Call `add` once per image with the colours (M, 3) and weights (M,) that it gives to M of the texels. Then `mean_or`
    returns the mean colours (N, 3), and `known` the mask (N,) of the texels that have any.
    """

    def __init__(self, texels: int) -> None:
        self.total, self.weights = np.zeros((texels, 3), np.float32), np.zeros(texels, np.float32)

    def add(self, colours: Array, weights: Array, index: Array | slice = slice(None)) -> None:
        """Add an image's colours (M, 3) with weights (M,) to M texels.

        `index` selects the texels, each at most once. By default, all texels are selected.
        """
        self.total[index] += weights[:, None] * colours
        self.weights[index] += weights

    @property
    def known(self) -> Array:
        """Bool mask (N,), True for the texels that have received a colour with a positive weight."""
        return self.weights > 0

    def mean_or(self, existing: Array, min_weight: float = MIN_WEIGHT) -> Array:
        """Return the mean colours (N, 3). Texels whose weights are all 0 get the colours `existing` (N, 3) instead.

        A mean is the sum of weight * colour, divided by the sum of the weights or, if this is larger, by `min_weight`.
        A texel whose weights have a smaller sum than `min_weight` is therefore darker, as in MV-Adapter with the
        default value.
        """
        mean = self.total / np.maximum(self.weights, min_weight)[:, None]
        return np.where(self.known[:, None], mean, existing)
