"""X-UNet: a UNet processes two views with shared weights, and the views attend to each other (3DiM, section 2.3).

    network = XUNet(XUNetConfig(image_size=64))
    eps = network(x, z, logsnr, c2w, K, cond_mask)

Frame 0 is the clean condition view and frame 1 the noisy target view; the output is the prediction for the target. The
baseline `architecture="concat"` takes the condition as additional input channels, without attention between frames.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.geometry.poses import pixel_rays

from .blocks import EPS, Attention, Block, Resample, ResBlock, initialise
from .logsnr import LOGSNR_MAX, Prediction
from .options import XUNetConfig
from .rays import encode_rays, noise_level_encoding, relative_poses

CHANNELS = 3
"""Number of channels of images (RGB)."""


class Conditioning(nn.Module):
    """Network that embeds noise levels and camera rays, with one feature map for each level of the UNet."""

    def __init__(self, config: XUNetConfig, frames: int, encoding: int) -> None:
        """Build the layers for `frames` frames per scene, each with `encoding` channels of encoded rays."""
        super().__init__()
        self.config, width = config, config.emb_channels
        self.logsnr = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        std = encoding**-0.5
        self.pos_emb = nn.Parameter(torch.randn(encoding, *config.size) * std) if config.use_pos_emb else None
        frame_emb = config.use_ref_pose_emb and frames > 1
        self.frame_emb = nn.Parameter(torch.randn(frames, encoding) * std) if frame_emb else None
        self.strides = [2**level for level in range(len(config.channel_mult))]
        self.poses = nn.ModuleList(nn.Conv2d(encoding, width, 3, stride=stride) for stride in self.strides)

    def forward(self, logsnr: Tensor, encoded: Tensor) -> list[Tensor]:
        """Return embeddings (B F, E, H / 2^i, W / 2^i) for each level i, after the swish that starts every FiLM layer.

        Args:
            logsnr: log-SNR of each frame (B, F).
            encoded: encoded rays (B, F, D, H, W).
        """
        noise = self.logsnr(noise_level_encoding(logsnr, self.config.emb_channels)).flatten(0, 1)
        if self.pos_emb is not None:
            encoded = encoded + self.pos_emb
        if self.frame_emb is not None:
            encoded = encoded + self.frame_emb[:, :, None, None]
        encoded = encoded.flatten(0, 1)
        layers = zip(self.poses, self.strides, strict=True)
        maps = (conv(F.pad(encoded, same_padding(stride))) for conv, stride in layers)
        return [F.silu(noise[:, :, None, None] + pose) for pose in maps]


def same_padding(stride: int) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) of TensorFlow's "SAME" mode for a 3 x 3 convolution.

    `stride` must divide the image size.
    """
    total = max(3 - stride, 0)
    return (total // 2, total - total // 2) * 2


class UNet(nn.Module):
    """UNet of `Block` modules, each conditioned on the embedding for its level."""

    def __init__(self, config: XUNetConfig, channels_in: int, cross: bool) -> None:
        """Build the layers; with `cross`, consecutive frames form pairs that attend to each other."""
        super().__init__()
        self.config, self.cross = config, cross
        widths, attends, per_level = config.widths, config.level_attention, config.num_res_blocks
        levels = range(len(widths))
        self.conv_in = nn.Conv2d(channels_in, config.channels, 3, padding=1)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        width, skips = config.channels, [config.channels]
        for level in levels:
            blocks = nn.ModuleList()
            for _ in range(per_level):
                blocks.append(self.block(width, widths[level], attends[level]))
                width = widths[level]
                skips.append(width)
            self.down.append(blocks)
            if level < levels[-1]:
                self.downsample.append(self.residual(width, width, "down"))
                skips.append(width)
        self.middle = self.block(width, width, attends[-1])
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()  # from coarse to fine
        for level in reversed(levels):
            blocks = nn.ModuleList()
            for _ in range(per_level + 1):
                blocks.append(self.block(width + skips.pop(), widths[level], attends[level]))
                width = widths[level]
            self.up.append(blocks)
            if level > 0:
                self.upsample.append(self.residual(width, width, "up"))
        self.norm_out = nn.GroupNorm(config.groups, width, EPS)
        self.conv_out = nn.Conv2d(width, CHANNELS, 3, padding=1)

    def residual(self, channels_in: int, channels: int, mode: Resample = None) -> ResBlock:
        c = self.config
        return ResBlock(channels_in, channels, c.emb_channels, c.groups, c.dropout, mode)

    def block(self, channels_in: int, channels: int, attends: bool) -> Block:
        heads, groups = self.config.attn_heads, self.config.groups
        own = Attention(channels, heads, groups) if attends else None
        cross = Attention(channels, heads, groups, cross=True) if attends and self.cross else None
        return Block(self.residual(channels_in, channels), own, cross)

    def forward(self, h: Tensor, emb: list[Tensor]) -> Tensor:
        """Transform frames (B F, C_in, H, W) to (B F, 3, H, W); `emb` has one embedding (B F, E, h, w) per level."""
        last = len(emb) - 1
        blocks: Any  # a ModuleList, which type checkers take for a bare module
        h = self.conv_in(h)
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, emb[level])
                skips.append(h)
            if level < last:
                h = self.downsample[level](h, emb[level])
                skips.append(h)
        h = self.middle(h, emb[last])
        for k, blocks in enumerate(self.up):
            level = last - k
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb[level])
            if level > 0:
                h = self.upsample[k](h, emb[level])
        return self.conv_out(F.silu(self.norm_out(h)))


class XUNet(nn.Module):
    """X-UNet or its baseline, an implementation of `sampler.ViewModel` on images. It predicts zeros until trained."""

    clip = 1.0

    def __init__(self, config: XUNetConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.size
        self.prediction: Prediction = config.prediction
        joined = config.architecture == "concat"
        self.frames = 1 if joined else 2
        self.conditioning = Conditioning(config, self.frames, config.encoding_channels * (2 if joined else 1))
        self.unet = UNet(config, CHANNELS * (2 if joined else 1), cross=not joined)
        initialise(self)
        nn.init.zeros_(self.unet.conv_out.weight)

    def encode_images(self, rgb: Tensor) -> Tensor:
        return 2 * rgb.permute(0, 3, 1, 2) - 1

    def decode_images(self, x: Tensor) -> Tensor:
        return (x.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1)

    def forward(
        self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, cond_mask: Tensor | None = None
    ) -> Tensor:
        """Predict noise, v or the clean view (B, 3, H, W) of the target, as `config.prediction` selects.

        Args:
            x: condition view (B, 3, H, W) in [-1, 1]; noise where it is dropped.
            z: noisy target view (B, 3, H, W).
            logsnr: log-SNR of condition (index 0) and target (1), (B, 2), in [-20, 20]; 20 is clean.
            c2w: camera-to-world poses of condition and target (B, 2, 4, 4), OpenGL axes.
            K: intrinsics in pixels (B, 3, 3), shared by both views.
            cond_mask: (B,) bool, False where the condition is dropped; the rays of both frames are then zero.
        """
        encoded = self.encode_cameras(c2w, K, cond_mask)
        if self.frames == 1:
            h, encoded, logsnr = torch.cat([x, z], dim=1), encoded.flatten(1, 2)[:, None], logsnr[:, 1:]
        else:
            h = torch.stack([x, z], dim=1).flatten(0, 1)
        out = self.unet(h, self.conditioning(logsnr, encoded))
        return out.unflatten(0, (len(x), self.frames))[:, -1]

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """Predict the target view (B, 3, H, W), float32; arguments as in `sampler.ViewModel`.

        The condition has the log-SNR of a clean image where `keep` is True, else `config.dropped_logsnr`.
        """
        clean, noise = torch.full_like(logsnr, LOGSNR_MAX), torch.full_like(logsnr, self.config.dropped_logsnr)
        levels = torch.stack([torch.where(keep, clean, noise), logsnr], dim=1)
        return self(x, z, levels, c2w, K, keep).float()

    def encode_cameras(self, c2w: Tensor, K: Tensor, cond_mask: Tensor | None) -> Tensor:
        """Return the encoded rays (B, 2, D, H, W) of both frames, zero where the condition is dropped.

        Args:
            c2w: camera-to-world poses (B, 2, 4, 4), OpenGL axes.
            K: intrinsics in pixels (B, 3, 3).
            cond_mask: (B,) bool, False where the condition is dropped; None: nowhere.
        """
        c = self.config
        if c.poses == "relative":
            with torch.autocast(c2w.device.type, enabled=False):
                c2w = relative_poses(c2w.float())
        encoded = encode_rays(*pixel_rays(c2w, K[:, None], *c.size), c.origin_degrees, c.direction_degrees)
        if cond_mask is not None:
            encoded = torch.where(cond_mask[:, None, None, None, None], encoded, 0.0)
        return encoded.permute(0, 1, 4, 2, 3)
