"""Novel-view models: X-UNet (3DiM, section 2.3) on images, and the UNet of an MVDream prior on latents.

An X-UNet processes two frames with shared weights, frame 0 the clean condition view and frame 1 the noisy target view;
the frames attend to each other. It predicts the noise, v or the clean image of the target. The baseline
architecture="concat" takes the condition as additional input channels, without attention between frames.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.geometry.poses import pixel_rays
from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.priors.mvdream import MVDream

from .blocks import EPS, Attention, Block, Resample, ResBlock, encode_rays, initialise, noise_level_encoding
from .options import XUNetConfig
from .sampler import LOGSNR_MAX, LOGSNR_MIN, Prediction

CHANNELS = 3


class Conditioning(nn.Module):
    """Network that embeds noise level and camera rays of each frame (view of a scene), for each level of a UNet.

    `forward` takes the log-SNR (B, F) and the encoded ray of each pixel (B, F, D, H, W), for B scenes with F frames
    each. It returns one embedding (B F, E, H / 2^i, W / 2^i) per resolution level i = 0, 1, ... of the UNet.

    Args:
        config: options of the network: image size (H, W), levels and E (`emb_channels`).
        frames: F. 2: condition and target view. 1, for architecture="concat": the encoded rays of both views are
            channels of one frame, which has the noise level of the target.
        encoding: D, number of channels of the encoded rays of a frame.
    """

    def __init__(self, config: XUNetConfig, frames: int, encoding: int) -> None:
        super().__init__()
        self.config, width = config, config.emb_channels
        self.logsnr = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        std = encoding**-0.5
        self.pos_emb = nn.Parameter(torch.randn(encoding, *config.size) * std)
        self.frame_emb = nn.Parameter(torch.randn(frames, encoding) * std) if frames > 1 else None
        self.strides = [2**level for level in range(len(config.channel_mult))]
        self.poses = nn.ModuleList(nn.Conv2d(encoding, width, 3, stride=stride) for stride in self.strides)

    def forward(self, logsnr: Tensor, encoded: Tensor) -> list[Tensor]:
        """Return one embedding (B F, E, H / 2^i, W / 2^i) per resolution level i = 0, 1, ... of B scenes with F frames.

        Each is SiLU(a + b_i) with E = `config.emb_channels` channels. The vector a embeds the noise level of a frame
        (view). The map b_i is a convolution with stride 2^i of the encoded rays plus learned position embeddings.

        Args:
            logsnr: log-SNR (B, F) of each frame.
            encoded: positional encoding (B, F, D, H, W) of the camera ray of each pixel, D channels.
        """
        noise = self.logsnr(noise_level_encoding(logsnr, self.config.emb_channels)).flatten(0, 1)
        encoded = encoded + self.pos_emb
        if self.frame_emb is not None:
            encoded = encoded + self.frame_emb[:, :, None, None]
        encoded = encoded.flatten(0, 1)
        layers = zip(self.poses, self.strides, strict=True)
        maps = (conv(F.pad(encoded, same_padding(stride))) for conv, stride in layers)
        return [F.silu(noise[:, :, None, None] + pose) for pose in maps]


def same_padding(stride: int) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) with which a 3 x 3 convolution equals TensorFlow's "SAME" mode.

    The sides of the input must be divisible by `stride`.
    """
    total = max(3 - stride, 0)
    return (total // 2, total - total // 2) * 2


class UNet(nn.Module):
    """UNet of residual and attention blocks for the frames (views) of B scenes, F frames per scene.

    `forward` takes frames (B F, C_in, H, W) and embeddings of their noise levels and camera rays (from the network
    `Conditioning`), which scale and shift the residual blocks. It returns (B F, 3, H, W): noise, v or clean image,
    whatever the model is trained to predict. The frames of a scene are condition view and noisy target view (F = 2,
    C_in = 3; the output for the condition view is not used), or one frame has both as channels (F = 1, C_in = 6). In
    attention blocks, each pixel attends to all pixels of its own frame and, with `cross` and F = 2, then to those of
    the scene's other frame.
    """

    def __init__(self, config: XUNetConfig, channels_in: int, cross: bool) -> None:
        """Build layers with the sizes of `config` for `channels_in` input channels per frame and three output channels.

        `cross`: whether the two frames of a scene attend to each other. If False, all frames are processed separately.
        """
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
        """Return the output (B F, 3, H, W) for the frames (views) h (B F, C_in, H, W) of B scenes with F frames each.

        The output is an RGB image, its noise or v, whatever the model is trained to predict. C_in is the constructor's
        `channels_in`: 3 for RGB frames, or 6 if the condition view and the noisy target view are channels of one frame
        (F = 1). `emb` is the result of `Conditioning`: an embedding of noise level and camera rays,
        (B F, E, H / 2^i, W / 2^i), per resolution level i = 0, 1, ..., with E = `config.emb_channels`.
        """
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
    """Diffusion model of a view of a scene, given another view: the X-UNet of 3DiM, or the baseline "concat".

    The inputs are the clean condition view and the noisy target view, both images (B, 3, H, W) in [-1, 1], with their
    log-SNR and cameras. The output is a prediction for the target view, (B, 3, H, W); for an untrained network, it is
    zero. In the X-UNet, both views are processed with shared weights and attend to each other. The baseline
    (architecture="concat") takes both views as channels of one frame.

    Attributes:
        clip: largest absolute value of clean views, to which predictions are clamped.
        image_size: (height, width) of images in pixels.
        prediction: kind of output: "epsilon" (noise), "v_prediction" or "sample" (clean view).
    """

    clip = 1.0

    def __init__(self, config: XUNetConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.size
        self.prediction: Prediction = config.prediction
        joined = config.architecture == "concat"
        self.frames = 1 if joined else 2
        ray = 6 + 6 * (config.origin_degrees + config.direction_degrees)  # values, sines and cosines of both
        self.conditioning = Conditioning(config, self.frames, ray * (2 if joined else 1))
        self.unet = UNet(config, CHANNELS * (2 if joined else 1), cross=not joined)
        initialise(self)
        nn.init.zeros_(self.unet.conv_out.weight)

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Convert images (N, H, W, 3) in [0, 1] to images (N, 3, H, W) in [-1, 1] for the network."""
        return 2 * rgb.permute(0, 3, 1, 2) - 1

    def decode_images(self, x: Tensor) -> Tensor:
        """Convert images (N, 3, H, W) in [-1, 1] to images (N, H, W, 3) in [0, 1]."""
        return (x.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1)

    def forward(
        self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, has_condition: Tensor | None = None
    ) -> Tensor:
        """Return the prediction for the target view, (B, 3, H, W): noise, v or clean view (attribute `prediction`).

        Args:
            x, z: clean condition view and noisy target view (B, 3, H, W), images in [-1, 1].
            logsnr: log-SNR of condition and target (B, 2).
            c2w: camera-to-world poses (B, 2, 4, 4) of condition and target, OpenGL axes.
            K: intrinsics (B, 3, 3) in pixels of the images, shared by both views.
            has_condition: (B,) bool, False where the condition is dropped: the rays of both views then are encoded as
                zeros, and `x` should be noise. None: all conditions are used.
        """
        encoded = self.encode_cameras(c2w, K, has_condition)
        if self.frames == 1:
            h, encoded, logsnr = torch.cat([x, z], dim=1), encoded.flatten(1, 2)[:, None], logsnr[:, 1:]
        else:
            h = torch.stack([x, z], dim=1).flatten(0, 1)
        out = self.unet(h, self.conditioning(logsnr, encoded))
        return out.unflatten(0, (len(x), self.frames))[:, -1]

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, has_condition: Tensor) -> Tensor:
        """Return the prediction for the target view, (B, 3, H, W) float32: noise, v or clean view, see `prediction`.

        Args:
            x: clean condition view (B, 3, H, W), an image in [-1, 1].
            z: noisy target view (B, 3, H, W).
            logsnr: log-SNR of the target view (B,).
            c2w: camera-to-world poses (B, 2, 4, 4), OpenGL axes; index 0 is the condition view, index 1 the target
                view.
            K: intrinsics (B, 3, 3) in pixels of images of size `image_size`, shared by both views.
            has_condition: (B,) bool; False: the prediction is unconditional, and `x` should be noise.
        """
        # a dropped condition, which is noise, has the log-SNR of noise
        levels = torch.stack([torch.where(has_condition, LOGSNR_MAX, LOGSNR_MIN).to(logsnr), logsnr], dim=1)
        return self(x, z, levels, c2w, K, has_condition).float()

    def encode_cameras(self, c2w: Tensor, K: Tensor, has_condition: Tensor | None) -> Tensor:
        """Encode the camera rays of all pixels of condition view (index 0) and target view (index 1): (B, 2, D, H, W).

        H x W is the size of the images. The D channels are the positional encodings (NeRF, eq. 4) of a ray's origin and
        direction in world space.

        Args:
            c2w: camera-to-world poses (B, 2, 4, 4) of both views, OpenGL axes.
            K: intrinsics (B, 3, 3) in pixels of the images, shared by both views.
            has_condition: (B,) bool. False: the result is zero for both views of the scene. None: no result is set to
                zero.
        """
        c = self.config
        encoded = encode_rays(*pixel_rays(c2w, K[:, None], *c.size), c.origin_degrees, c.direction_degrees)
        if has_condition is not None:
            encoded = torch.where(has_condition[:, None, None, None, None], encoded, 0.0)
        return encoded.permute(0, 1, 4, 2, 3)


class LatentPairs(nn.Module):
    """Diffusion model of the latents of a view, given another view: the UNet of an MVDream prior on pairs of views.

    `predict` returns the UNet's prediction for the target view, noise or v, (B, C, h, w). The two views of a pair
    attend to each other. The prompt is empty. If the UNet has input channels for latents of a coarse predictor, these
    are zero. The arguments of `predict` are, for B pairs:

    - x: clean latents of the condition view (B, C, h, w), at timestep 0.
    - z: noisy latents of the target view (B, C, h, w).
    - logsnr: log-SNR of z (B,), which is converted to timesteps of the prior (method `timestep`).
    - c2w: camera-to-world poses (B, 2, 4, 4) of condition and target, OpenGL axes.
    - K: intrinsics, which are ignored, because the prior takes camera directions only.
    - has_condition: (B,) bool. False: the prediction is unconditional; x should be noise and gets the last timestep,
      and zeros replace the camera vectors of both views.

    `encode_images` converts images (N, H, W, 3) in [0, 1] to latents (N, C, h, w), `decode_images` converts latents
    back. Only the UNet is trainable.

    Attributes:
        clip: None: latents have no bound, so predictions are not clamped.
        image_size: (height, width) of images in pixels.
        prediction: kind of output: "epsilon" (noise) or "v_prediction".
    """

    clip = None  # latents have no bound
    levels: Tensor
    text: Tensor

    def __init__(self, prior: MVDream) -> None:
        super().__init__()
        self.unet, self.image_size = prior.unet, (prior.image_size, prior.image_size)
        self.prediction: Prediction = prior.schedule.prediction
        self._prior = (prior,)  # in a tuple, so that its networks are no sub-modules
        a = prior.schedule.alpha_bar.cpu().double()
        self.register_buffer("levels", torch.log(a / (1 - a)).float(), persistent=False)
        self.register_buffer("text", prior.encode_prompt([""]).cpu(), persistent=False)

    @property
    def prior(self) -> MVDream:
        (prior,) = self._prior
        if prior.device != self.text.device:
            prior.to(self.text.device)
        return prior

    @torch.no_grad()
    def encode_images(self, rgb: Tensor) -> Tensor:
        prior = self.prior
        return prior.posterior(rgb)[0] * prior.scaling_factor

    @torch.no_grad()
    def decode_images(self, x: Tensor) -> Tensor:
        return self.prior.decode_latents(x.float()).float()

    def timestep(self, logsnr: Tensor) -> Tensor:
        """Convert log-SNR (B,) to fractional timesteps (B,) of the prior with this log-SNR: 0 (clean) to T - 1 (noise).

        T is the number of timesteps of the prior. A log-SNR beyond that of timestep 0 or T - 1 gives 0 or T - 1.
        """
        rising = self.levels.flip(0)
        level = logsnr.clamp(rising[0], rising[-1])
        high = torch.searchsorted(rising, level).clamp(1, len(rising) - 1)
        fraction = (level - rising[high - 1]) / (rising[high] - rising[high - 1])
        return len(rising) - high - fraction

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, has_condition: Tensor) -> Tensor:
        last = torch.full_like(logsnr, len(self.levels) - 1)
        t = torch.stack([torch.where(has_condition, 0.0, last), self.timestep(logsnr)], dim=1).flatten()
        camera = camera_vector(c2w.float().flatten(0, 1)) * has_condition.repeat_interleave(2)[:, None]
        pair = torch.stack([x, z], dim=1).flatten(0, 1)
        text = self.text.expand(len(pair), -1, -1)
        out = self.prior.predict(pair, t, text, camera, 2, torch.zeros_like(pair))
        return out.unflatten(0, (len(x), 2))[:, 1].float()
