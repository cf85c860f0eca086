"""Feature maps for the coarse predictor from a feature volume, so that all views show one object.

Text and object code give a volume of features around the origin. A view samples the volume along its rays, like HoloGAN
(Nguyen-Phuoc et al. 2019, arXiv 1904.01326), and attenuates features by the opacity in front of them, as in volume
rendering. A small 2D network turns the features of a view into latents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .coarse_blocks import Block
from .view_fusion import HARMONICS, camera_harmonics

COARSEST, SEED_RANK = 4, 128
"""Cells per side of the coarsest feature volume, and rank of the linear layer that computes it."""
RADIUS, REACH = 0.85, 0.88
"""RADIUS: half the depth range, around the origin, of the samples of a ray. REACH: half the side of the feature volume.
Both in world units."""
HALF_EXTENT = 0.95
"""Half the side, in world units, of the square that `VolumeFeatures` assumes to be visible; the toybox cameras are
about 0.95 / tan(fov / 2) away from the object's centre."""
DISTANCE = 2.61
"""Assumed distance of the cameras from the origin, in world units; camera vectors have no distance."""
INNER_BLOCKS, MAP_CHANNELS, MAP_BLOCKS, DEPTHS = 2, 64, 2, 12
"""INNER_BLOCKS: residual blocks per volume; the coarsest and the finest volume have one. MAP_CHANNELS, MAP_BLOCKS:
channels and number of blocks of the 2D network. DEPTHS: samples per ray."""
OPACITY_BIAS, EMPTY, SOLID = -2.0, 0.1, 2.0
"""OPACITY_BIAS is added to the logits of the opacity. The features of a sample are multiplied by EMPTY + SOLID * w,
where w is its weight in volume rendering (opacity times transmittance)."""


class VolumeFeatures(nn.Module):
    """Network that computes a feature volume of an object and renders feature maps of views from it.

    The volume is computed from a text and an object code, a vector for what the text leaves unspecified. `forward`
    takes vectors (B, F) that summarise both, their tokens (B, L, D), and flattened camera-to-world matrices (B, V, 16)
    of V views of each of B objects. It returns a list of feature maps, one per level of the coarse predictor
    (`CoarsePredictor`). A level with c channels and side s gets (B V, c, s, s), which the predictor adds to its own
    feature map. The returned maps are zero before training.
    """

    def __init__(
        self,
        text_width: int,
        size: int,
        heads: int,
        width: int,
        features: int,
        channels: tuple[int, ...],
        maps: tuple[int, ...],
    ) -> None:
        """Build the network.

        It computes feature volumes, from coarse to fine, from text and object code (a vector for what the text leaves
        unspecified). All feature maps of a view are rendered from the finest volume.

        Args:
            text_width: features D per token of the text.
            size: side h of the latents, and of the finest volume.
            heads: attention heads of the residual blocks.
            width: length of the vector with which all residual blocks scale and shift their channels (FiLM). An MLP
                computes it from the argument `features` of `forward`.
            features: length F of the vectors `features` (B, F) that `forward` takes; they summarise text and object
                code.
            channels: channels of the volumes, one number per volume. The volumes have 4, 8, 16, ..., h cells per side.
                Each is computed from the preceding one. All but the finest attend to the text.
            maps: channels of the feature maps that `forward` returns, one number per map, from coarse to fine. Their
                sides are ..., h / 4, h / 2, h. There may be more or fewer maps than volumes.

        Raises:
            ValueError: the side of the finest volume, which follows from the number of `channels`, differs from `size`.
        """
        super().__init__()
        last = len(channels) - 1
        if COARSEST * 2**last != size:
            raise ValueError(f"channels {channels} of volumes do not fit latents of side {size}")
        self.mix = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.seed = nn.Sequential(
            nn.Linear(width, SEED_RANK, bias=False), nn.Linear(SEED_RANK, channels[0] * COARSEST**3)
        )
        self.levels = nn.ModuleList(
            nn.ModuleList(
                Block(c, text_width, heads, width, conv=nn.Conv3d, attend=k < last)
                for _ in range(INNER_BLOCKS if 0 < k < last else 1)
            )
            for k, c in enumerate(channels)
        )
        self.finer = nn.ModuleList(nn.Conv3d(a, 8 * b, 1) for a, b in zip(channels, channels[1:], strict=False))
        self.positions = nn.ParameterList(
            nn.Parameter(0.1 * torch.randn(1, c, *[COARSEST * 2**k] * 3)) for k, c in enumerate(channels)
        )
        self.volume_norm = nn.GroupNorm(8, channels[-1])
        self.to_feature = nn.Conv3d(channels[-1], channels[-1] + 1, 1)
        self.flatten = nn.Conv2d(channels[-1] * DEPTHS, MAP_CHANNELS, 1)
        self.camera = nn.Linear(2 * HARMONICS + 2, width)
        self.view_mix = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.image = nn.ModuleList(
            Block(MAP_CHANNELS, text_width, heads, width, attend=False) for _ in range(MAP_BLOCKS)
        )
        self.out_norm = nn.GroupNorm(8, MAP_CHANNELS)
        self.sides = [2 ** (len(maps) - 1 - k) for k in range(len(maps))]  # latent pixels per cell of each level
        out = [nn.Conv2d(MAP_CHANNELS * side**2, c, 1) for side, c in zip(self.sides, maps, strict=True)]
        for parameter in (p for layer in out for p in layer.parameters()):
            nn.init.zeros_(parameter)
        self.out = nn.ModuleList(out)
        self.size = size

    def forward(self, features: Tensor, text: Tensor, camera: Tensor) -> list[Tensor]:
        """Return feature maps (B V, c, s, s) of V views of B objects, one tensor for each level, from coarse to fine.

        Each level has its channels c and side s. `features` (B, F) summarise text and object code, `text` (B, L, D) are
        the tokens of both. `camera` (B, V, 16) are camera vectors: camera-to-world matrices, row by row, with
        translations of length 1.
        """
        mixed, count = self.mix(features), camera.shape[1]
        x = self.project(self.volume(mixed, text), camera)
        view = mixed.repeat_interleave(count, 0) + self.camera(camera_harmonics(camera.flatten(0, 1)))
        view = self.view_mix(view)
        for block in self.image:
            x = block(x, text, view)
        x = F.silu(self.out_norm(x))
        return [layer(F.pixel_unshuffle(x, side)) for layer, side in zip(self.out, self.sides, strict=True)]

    def volume(self, mixed: Tensor, text: Tensor) -> Tensor:
        """Return feature volumes (B, C + 1, n, n, n) of B objects: C features, then a logit of the opacity.

        The opacity is sigmoid(logit + `OPACITY_BIAS`). The last three axes are x, y, z; n is the constructor's `size`.
        `text` (B, L, D) are the tokens of each text, followed by tokens of the object code, a vector for what the text
        leaves unspecified. `mixed` (B, width) are vectors that `forward` computes from both; they scale and shift the
        channels.
        """
        x = self.seed(mixed).unflatten(1, (-1, COARSEST, COARSEST, COARSEST))
        for k, (blocks, positions) in enumerate(zip(self.levels, self.positions, strict=True)):
            x = (x if k == 0 else shuffle(self.finer[k - 1](x))) + positions
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, text, mixed)
        return self.to_feature(F.silu(self.volume_norm(x)))

    def project(self, volume: Tensor, camera: Tensor) -> Tensor:
        """Render feature maps (B V, 64, h, h) of V views of each of B objects; h is the constructor's `size`.

        The ray of each pixel has 12 points (`DEPTHS`), from near to far through the volume. Features and a logit are
        interpolated there, and the opacity is sigmoid(logit + `OPACITY_BIAS`). As in NeRF, the weight w of a point is
        its opacity times the share of light that passes the points in front of it. The features of the point are
        multiplied by `EMPTY` + `SOLID` w = 0.1 + 2 w, so those of empty or hidden points become small but not zero. A
        linear layer maps the concatenated features of the 12 points to the 64 features of the pixel (`MAP_CHANNELS`).

        Args:
            volume: feature volumes (B, C + 1, n, n, n) from the method `volume`: C features and the logit per cell,
                n = h cells per side.
            camera: camera vectors (B, V, 16): camera-to-world matrices, row by row, with translations of length 1.
        """
        B, V = camera.shape[:2]
        points = self.points(camera.flatten(0, 1)).flip(-1).unflatten(0, (B, V)).flatten(1, 2)  # as z, y, x
        sampled = F.grid_sample(volume.float(), points, align_corners=False)  # (B, C + 1, V depths, h, h)
        sampled = sampled.unflatten(2, (V, -1)).transpose(1, 2).flatten(0, 1)
        opacity = torch.sigmoid(sampled[:, -1:] + OPACITY_BIAS)
        passed = torch.cumprod(1 - opacity + 1e-4, 2)
        weight = opacity * torch.cat([torch.ones_like(passed[:, :, :1]), passed[:, :, :-1]], 2)
        return self.flatten((sampled[:, :-1] * (EMPTY + SOLID * weight)).flatten(1, 2))

    def position_weights(self) -> list[nn.Parameter]:
        """Return the weights that have separate values for each cell of a volume.

        These are the weight of the layer that computes the coarsest volume, and the position embeddings of all levels.
        The optimiser Muon treats a weight as a matrix from inputs to outputs and orthogonalises its update, which does
        not suit such tables of values. Weights passed as its argument `elementwise` are updated by AdamW instead.
        """
        return [self.seed[1].weight, *self.positions]

    def points(self, camera: Tensor) -> Tensor:
        """Return the points (N, 12, h, h, 3) at which the rays of N cameras sample the volume.

        Each latent pixel has a ray with 12 points; h is the side of the latents. The axes h, h are image rows, from the
        top, and columns. The last axis is (x, y, z), scaled so that the volume, a cube of side 1.76 world units
        (2 `REACH`) around the origin, is [-1, 1]^3.

        All cameras look at the origin from a distance of 2.61 world units (`DISTANCE`). Let P be the plane through the
        origin that faces the camera. The rays of a camera cover a square of P with side 1.9 world units
        (2 `HALF_EXTENT`). The 12 points of a ray (`DEPTHS`), from near to far, are the centres of 12 equal depth
        intervals, which reach from 0.85 world units (`RADIUS`) in front of P to 0.85 behind P.

        `camera` (N, 16) are camera-to-world matrices, row by row; only their rotations are used.
        """
        pose = camera.float().unflatten(1, (4, 4))[:, :3, :3]
        right, up, back = (pose[:, None, None, None, :, k] for k in range(3))
        u = HALF_EXTENT * cell_centres(self.size, pose.device)
        depth = -RADIUS * cell_centres(DEPTHS, pose.device)[:, None, None, None]  # from near to far
        plane = right * u[:, None] - up * u[:, None, None]
        return ((1 - depth / DISTANCE) * plane + depth * back) / REACH


def cell_centres(count: int, device: torch.device) -> Tensor:
    """Return the centres (count,) of `count` equal parts of [-1, 1], ascending."""
    return (2 * torch.arange(count, device=device) + 1) / count - 1


def shuffle(x: Tensor) -> Tensor:
    """Rearrange a volume (B, 8 C, n, n, n) to twice the side, (B, C, 2 n, 2 n, 2 n), as pixel_shuffle does in 2D."""
    x = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
