"""View fusion: a convolutional network that corrects the coarse predictions of views with their noisy latents.

The views of an object are denoised together, so each prediction can use what the noise leaves visible in all views. The
features that one view gets from another are modulated by the cameras and noise levels of both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .object_code import FREQUENCIES, sinusoids

HARMONICS = 4
"""Number of sines and of cosines that encode the azimuth of a camera. A coarse predictor with plain camera vectors as
input still ignored the camera after 300 training steps."""
WIDTH, ROW_CHANNELS, HIDDEN, GROUPS = 192, 32, 48, 8
"""WIDTH: features of a view or of a pair of views. ROW_CHANNELS: channels in `RowLayer`. HIDDEN: hidden features of the
MLP over all pixels. GROUPS: groups of the group norms."""
VIEWS = 4
"""Usual number of views per object; the mean message from all views is multiplied by its square root."""


class ModulatedBlock(nn.Module):
    """Residual block: group norm, scale and shift, SiLU, 3 x 3 convolution, SiLU, 3 x 3 convolution.

    Input: feature maps (N, channels, h, w) of N views, and features (N, WIDTH = 192) of each view's camera and noise
    level, from which a linear layer computes a scale and a shift per channel. Output: feature maps of the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.modulation = nn.Linear(WIDTH, 2 * channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in (self.second.weight, self.modulation.weight, self.modulation.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        scale, shift = self.modulation(features)[..., None, None].chunk(2, 1)
        return x + self.second(F.silu(self.first(F.silu(self.norm(x) * (1 + scale) + shift))))


class RowLayer(nn.Module):
    """Residual MLP over each row of a square feature map; it mixes all positions and channels of the row.

    Input: feature maps (N, channels, side, side) of N views, and features (N, WIDTH = 192) of each view's camera and
    noise level, which scale the channels. Output: feature maps of the same shape. The layer can move features of other
    views to their position in this view, because cameras at one elevation see a 3D point in about the same row.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, ROW_CHANNELS, 1)
        self.modulation = nn.Linear(WIDTH, ROW_CHANNELS)
        size = ROW_CHANNELS * side
        self.row = nn.Sequential(nn.Linear(size, size // 2), nn.SiLU(), nn.Linear(size // 2, size))
        self.expand = nn.Conv2d(ROW_CHANNELS, channels, 1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        y = F.group_norm(self.reduce(x), GROUPS // 2) * (1 + self.modulation(features)[..., None, None])
        rows = self.row(y.transpose(1, 2).flatten(2))
        return x + self.expand(rows.unflatten(2, (ROW_CHANNELS, -1)).transpose(1, 2))


class ViewFusion(nn.Module):
    """Network that corrects coarse predictions of the latents of an object's views with the noisy latents of all views.

    Another network made the coarse predictions without the noisy latents. A call takes noisy latents, noise levels,
    cameras and coarse predictions of B objects with V views each, and returns better predictions, see `forward`.

    First, each view gets features from all views (`messages`), which depend on their noisy latents, cameras and noise
    levels. Then a small UNet, the same for every view, predicts a correction, which is added to the coarse prediction.
    Before training, the correction is zero.
    """

    def __init__(self, latent_channels: int, size: int, channels: int) -> None:
        """Build the network for latents (C, h, h) with C = `latent_channels` and h = `size`.

        `channels` is the number of channels of the feature maps at full resolution, h x h; it is a multiple of 8. Maps
        at h/2 and h/4 have twice as many. Raises ValueError if `size` is not a multiple of 4.
        """
        super().__init__()
        if size % 4:
            raise ValueError(f"size {size} should be a multiple of 4")
        levels, wide = 2 * FREQUENCIES, 2 * channels
        self.pair, self.view = (
            nn.Sequential(nn.Linear(features + 2 * levels, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
            for features in (2 * HARMONICS + 4, 2 * HARMONICS + 2)
        )
        # from a view and its mirror image, because outlines from opposite sides are mirror images of each other
        self.source = nn.Conv2d(2 * latent_channels, channels, 3, padding=1)
        self.message = nn.Linear(WIDTH, 2 * channels)
        self.merge = nn.Conv2d(channels, channels, 3, padding=1)
        self.own_input = nn.Conv2d(2 * latent_channels, channels, 3, padding=1)
        self.at_full = nn.ModuleList(ModulatedBlock(channels) for _ in range(2))
        self.to_half = nn.Conv2d(4 * channels, wide, 1)
        self.at_half = nn.ModuleList(ModulatedBlock(wide) for _ in range(3))
        self.rows = RowLayer(wide, size // 2)
        self.to_quarter = nn.Conv2d(4 * wide, wide, 1)
        self.at_quarter = ModulatedBlock(wide)
        flat = wide * (size // 4) ** 2
        self.global_mlp = nn.Sequential(nn.Linear(flat, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, flat))
        self.from_quarter = nn.Conv2d(wide, 4 * wide, 1)
        self.from_half = nn.Conv2d(wide, 4 * channels, 1)
        self.out = nn.Conv2d(channels, latent_channels, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, level: Tensor, camera: Tensor, coarse: Tensor) -> Tensor:
        """Return improved predictions (B, V, C, h, h) of the clean latents of B objects with V views each.

        Args:
            x: noisy latents a z + s e (B, V, C, h, h): clean latents z times a factor a, Gaussian noise e times s.
            level: noise levels (B, V), 2 / pi arctan(s / a); 0: clean latents, 1: noise.
            camera: camera vectors (B, V, 16), row-major camera-to-world matrices with translations of length 1.
            coarse: predictions (B, V, C, h, h) of the clean latents, to be improved.
        """
        x = x.to(coarse.dtype)  # float32, or the dtype of autocast; x may have that of a UNet with half weights
        noise = sinusoids(level.flatten()).unflatten(0, level.shape).to(x.dtype)
        view = self.view(view_features(camera, noise).flatten(0, 1))
        latents, predicted = x.flatten(0, 1), coarse.flatten(0, 1)
        y = self.messages(latents, pair_features(camera, noise)) + self.own_input(torch.cat([latents, predicted], 1))
        y = self.at_full[0](y, view)
        half = self.rows(self.at_half[0](self.to_half(F.pixel_unshuffle(y, 2)), view), view)
        half = self.at_half[1](half, view)
        quarter = self.to_quarter(F.pixel_unshuffle(half, 2))
        quarter = quarter + self.global_mlp(F.group_norm(quarter, GROUPS).flatten(1)).view_as(quarter)
        half = half + F.pixel_shuffle(self.from_quarter(self.at_quarter(quarter, view)), 2)
        y = y + F.pixel_shuffle(self.from_half(self.at_half[2](half, view)), 2)
        y = self.at_full[1](y, view)
        return coarse + self.out(F.silu(F.group_norm(y, GROUPS))).unflatten(0, x.shape[:2])

    def messages(self, latents: Tensor, pairs: Tensor) -> Tensor:
        """Return features (B * V, channels, h, h) that each view gets from all views of its object, including itself.

        A convolution computes features of each source view from its noisy latents and their mirror image. For each pair
        of views, an MLP on `pairs` computes a scale and a shift of these features per channel. The scaled and shifted
        features are averaged over the source views and convolved once more.

        Args:
            latents: noisy latents (B * V, C, h, h) of B objects with V views each.
            pairs: features (B, V, V, F) of all pairs of views, from `pair_features`: receiving view (second axis),
                source view (third axis).
        """
        B, V = pairs.shape[:2]
        source = F.group_norm(self.source(torch.cat([latents, latents.flip(-1)], 1)), GROUPS)
        scale, shift = self.message(self.pair(pairs.flatten(0, 2)))[..., None, None].chunk(2, 1)
        source = source.unflatten(0, (B, 1, V)).expand(B, V, V, *source.shape[1:]).flatten(0, 2)
        means = F.silu(source * (1 + scale) + shift).unflatten(0, (B * V, V)).mean(1)
        return self.merge(VIEWS**0.5 * means)  # the scale of independent features stays about 1


def azimuth_harmonics(azimuth: Tensor) -> Tensor:
    """Return cos(k a) for k = 1..HARMONICS, then sin(k a), of azimuths a (...) in radians: (..., 2 HARMONICS)."""
    turns = azimuth[..., None] * torch.arange(1, HARMONICS + 1, device=azimuth.device)
    return torch.cat([turns.cos(), turns.sin()], -1)


def camera_harmonics(camera: Tensor) -> Tensor:
    """Return features (..., 2 HARMONICS + 2) of camera vectors (..., 16): azimuth harmonics, height z and z^2.

    A camera vector is a row-major camera-to-world matrix with a translation (x, y, z) of length 1, in a world with z
    up. The azimuth harmonics are cos(k a), then sin(k a), for k = 1..HARMONICS and the azimuth a = atan2(y, x).
    """
    x, y, z = camera[..., 3], camera[..., 7], camera[..., 11:12]
    return torch.cat([azimuth_harmonics(torch.atan2(y, x)), z, z**2], -1)


def view_features(camera: Tensor, noise: Tensor) -> Tensor:
    """Return features (B, V, F) of the cameras and noise levels of B objects with V views each.

    `camera` (B, V, 16) has camera-to-world matrices, row-major. `noise` (B, V, N) has the noise level of each view,
    encoded as N values. The features of a view are 2 HARMONICS + 2 values of its camera (`camera_harmonics`), its N
    values in `noise`, and the mean of `noise` over the V views, so F = 2 HARMONICS + 2 + 2 N.
    """
    return torch.cat([camera_harmonics(camera), noise, noise.mean(1, keepdim=True).expand_as(noise)], -1)


def pair_features(camera: Tensor, noise: Tensor) -> Tensor:
    """Return features (B, V, V, F) of all pairs of views: view i (second axis) gets messages from view j (third axis).

    `camera` (B, V, 16) has camera-to-world matrices, row-major. `noise` (B, V, N) has the noise level of each view,
    encoded as N values. The F = 2 HARMONICS + 4 + 2 N features are, in this order:

    - cos(k a), then sin(k a), for k = 1..HARMONICS and a = azimuth i minus azimuth j
    - heights z_i and z_j of the cameras, z_i - z_j, and 1 if i = j, else 0
    - `noise` of view i, then of view j
    """
    V = camera.shape[1]
    x, y, z = camera[..., 3], camera[..., 7], camera[..., 11]
    azimuth = torch.atan2(y, x)
    turn = azimuth_harmonics(azimuth[:, :, None] - azimuth[:, None])
    first, second = z[:, :, None].expand(-1, -1, V), z[:, None].expand(-1, V, -1)
    same = torch.eye(V, device=z.device, dtype=z.dtype).expand_as(first)
    levels = [noise[:, :, None].expand(-1, -1, V, -1), noise[:, None].expand(-1, V, -1, -1)]
    return torch.cat([turn, torch.stack([first, second, first - second, same], -1), *levels], -1)
