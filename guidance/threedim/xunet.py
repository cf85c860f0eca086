"""X-UNet: two views pass through one UNet with shared weights and attend to each other (3DiM, section 2.3).

    network = XUNet(XUNetConfig(image_size=64))
    eps = network(x, z, logsnr, c2w, K, cond_mask)

Frame 0 is the clean condition, frame 1 the noisy target; only the prediction for the target comes back. The baseline
``architecture="concat"`` shares everything but the joining: the condition enters by the channels, no frame attends.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.geometry.poses import pixel_rays

from .blocks import Attention, Block, Resample, ResBlock, initialise
from .logsnr import LOGSNR_MAX, Prediction
from .options import XUNetConfig
from .rays import encode_rays, noise_level_encoding, relative_poses
from .sampler import check_shapes


class Conditioning(nn.Module):
    """Noise levels and rays -> one embedding for each level of the UNet."""

    def __init__(self, config: XUNetConfig, frames: int, encoding: int) -> None:
        """``frames``: of a scene, each with ``encoding`` channels of encoded rays."""
        super().__init__()
        self.config, width = config, config.emb_channels
        self.logsnr = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        spread = encoding**-0.5
        self.pos_emb = nn.Parameter(torch.randn(encoding, *config.size) * spread) if config.use_pos_emb else None
        tell_apart = config.use_ref_pose_emb and frames > 1
        self.frame_emb = nn.Parameter(torch.randn(frames, encoding) * spread) if tell_apart else None
        levels = range(len(config.channel_mult))
        self.poses = nn.ModuleList(nn.Conv2d(encoding, width, 3, stride=2**level) for level in levels)

    def forward(self, logsnr: Tensor, encoded: Tensor) -> list[Tensor]:
        """logsnr (B, F), encoded rays (B, F, D, H, W) -> for each level i (B F, E, H / 2^i, W / 2^i), after a swish.

        The swish with which every FiLM begins is the same for all blocks of a level, so it is done here, once.
        """
        port = self.config.variant == "port"
        noise = self.logsnr(noise_level_encoding(logsnr, self.config.emb_channels, raw=port)).flatten(0, 1)
        if self.pos_emb is not None:
            encoded = encoded + self.pos_emb
        if self.frame_emb is not None:
            encoded = encoded + self.frame_emb[:, :, None, None]
        encoded = encoded.flatten(0, 1)
        sides = [(1, 1, 1, 1) if port else same_padding(2**level) for level in range(len(self.poses))]
        maps = (conv(F.pad(encoded, side)) for conv, side in zip(self.poses, sides, strict=True))
        return [F.silu(noise[:, :, None, None] + pose) for pose in maps]


def same_padding(stride: int) -> tuple[int, int, int, int]:
    """What TensorFlow's "SAME" adds left, right, above, below for a 3x3 convolution; ``stride`` divides the size."""
    total = max(3 - stride, 0)
    return (total // 2, total - total // 2) * 2


class UNet(nn.Module):
    """The UNet around the blocks: (B F, C_in, H, W) and the levels' embeddings -> (B F, C_out, H, W)."""

    def __init__(self, config: XUNetConfig, channels_in: int, cross: bool) -> None:
        """``cross``: frames come in pairs, which attend to each other."""
        super().__init__()
        self.config, self.cross, self.eps = config, cross, 1e-5 if config.variant == "port" else 1e-6
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
        self.middle = self.block(width, width, config.middle_attention)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()  # from coarse to fine
        for level in reversed(levels):
            blocks = nn.ModuleList()
            for _ in range(per_level + 1):
                blocks.append(self.block(width + skips.pop(), widths[level], attends[level]))
                width = widths[level]
            self.up.append(blocks)
            if level > 0:
                self.upsample.append(self.residual(width, width, "up"))
        self.norm_out = nn.GroupNorm(config.groups, width, self.eps)
        self.conv_out = nn.Conv2d(width, config.image_channels, 3, padding=1)

    def residual(self, channels_in: int, channels: int, resample: Resample = None) -> ResBlock:
        c = self.config
        swish = c.variant != "port"
        return ResBlock(channels_in, channels, c.emb_channels, c.groups, c.dropout, resample, self.eps, swish)

    def block(self, channels_in: int, channels: int, attends: bool) -> Block:
        heads, groups = self.config.attn_heads, self.config.groups
        own = Attention(channels, heads, groups, eps=self.eps) if attends else None
        cross = Attention(channels, heads, groups, cross=True, eps=self.eps) if attends and self.cross else None
        return Block(self.residual(channels_in, channels), own, cross)

    def forward(self, h: Tensor, emb: list[Tensor]) -> Tensor:
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
        for place, blocks in enumerate(self.up):
            level = last - place
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb[level])
            if level > 0:
                h = self.upsample[place](h, emb[level])
        return self.conv_out(F.silu(self.norm_out(h)))


class XUNet(nn.Module):
    """The network of a ``config``: X-UNet, or the concatenating baseline. Fresh weights predict zeros.

    A ``sampler.ViewModel`` on pictures themselves.
    """

    clip = 1.0

    def __init__(self, config: XUNetConfig) -> None:
        super().__init__()
        self.config, self.picture_size = config, config.size
        self.prediction: Prediction = config.prediction
        joined = config.architecture == "concat"
        self.frames = 1 if joined else 2
        self.conditioning = Conditioning(config, self.frames, config.encoding_channels * (2 if joined else 1))
        self.unet = UNet(config, config.image_channels * (2 if joined else 1), cross=not joined)
        initialise(self)
        nn.init.zeros_(self.unet.conv_out.weight)

    def from_pictures(self, rgb: Tensor) -> Tensor:
        return 2 * rgb.permute(0, 3, 1, 2) - 1

    def to_pictures(self, x: Tensor) -> Tensor:
        return (x.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1)

    def forward(
        self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, cond_mask: Tensor | None = None
    ) -> Tensor:
        """The output for the target, (B, C, H, W): eps, v or the clean view, as ``config.prediction`` says.

        Args:
            x, z: the condition, clean or noise where it is dropped, and the noisy target (B, C, H, W), in [-1, 1].
            logsnr: of both frames (B, 2), in [-20, 20]; 20 is clean.
            c2w: poses of both cameras (B, 2, 4, 4), OpenGL axes.  K: intrinsics in pixels (B, 3, 3), of both.
            cond_mask: (B,) bool, False where the condition is dropped: the rays of both frames are masked.

        Raises ValueError when the shapes do not belong together.
        """
        self.check(x, z, logsnr, c2w, K, cond_mask)
        encoded = self.encode(c2w, K, cond_mask)
        if self.frames == 1:
            h, encoded, logsnr = torch.cat([x, z], dim=1), encoded.flatten(1, 2)[:, None], logsnr[:, 1:]
        else:
            h = torch.stack([x, z], dim=1).flatten(0, 1)
        out = self.unet(h, self.conditioning(logsnr, encoded))
        return out.unflatten(0, (len(x), self.frames))[:, -1]

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """As ``forward``, in float32, of the target's ``logsnr`` (B,) alone: a kept condition is clean, and of a
        dropped one (``keep`` (B,) bool is False, ``x`` is noise) the network is told what it was trained with.
        """
        clean, noise = torch.full_like(logsnr, LOGSNR_MAX), torch.full_like(logsnr, self.config.dropped_logsnr)
        levels = torch.stack([torch.where(keep, clean, noise), logsnr], dim=1)
        return self(x, z, levels, c2w, K, keep).float()

    def encode(self, c2w: Tensor, K: Tensor, cond_mask: Tensor | None) -> Tensor:
        """Encoded rays of both frames (B, 2, D, H, W), zeros where the condition is dropped."""
        c = self.config
        if c.poses == "relative":
            with torch.autocast(c2w.device.type, enabled=False):
                c2w = relative_poses(c2w.float())
        encoded = encode_rays(*pixel_rays(c2w, K[:, None], *c.size), c.origin_degrees, c.direction_degrees)
        if cond_mask is not None:
            encoded = torch.where(cond_mask[:, None, None, None, None], encoded, 0.0)
        return encoded.permute(0, 1, 4, 2, 3)

    def check(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, cond_mask: Tensor | None) -> None:
        """Raises ValueError that names the input of another shape than (B, ...) of ``x`` asks for."""
        B, size = len(x), (self.config.image_channels, *self.config.size)
        mask = {} if cond_mask is None else {"cond_mask": (cond_mask, (B,))}
        same = {"x": (x, (B, *size)), "z": (z, (B, *size)), "logsnr": (logsnr, (B, 2)), "c2w": (c2w, (B, 2, 4, 4))}
        check_shapes("this network needs", **same, K=(K, (B, 3, 3)), **mask)
        if cond_mask is not None and cond_mask.dtype != torch.bool:
            raise ValueError(f"cond_mask should be bool, True where the condition counts, not {cond_mask.dtype}")
