"""Novel-view model on latents: the UNet of the multi-view prior.

Its joined attention mixes appearance between two frames: the clean condition at time step 0 and the noisy target. The
prompt is empty and a coarse prediction is replaced by zeros. A dropped condition is noise at the last time step, with
zeros for both cameras. The intrinsics are not used, as this prior takes directions only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.priors.mvdream import MVDream

from .logsnr import Prediction
from .rays import relative_poses


class LatentPairs(nn.Module):
    """A `sampler.ViewModel` around a prior, of which the UNet alone is part of this module (and trained in place)."""

    clip = None
    levels: Tensor
    text: Tensor

    def __init__(self, prior: MVDream, poses: Literal["absolute", "relative"] = "absolute") -> None:
        """`poses`: as in `XUNetConfig.poses`."""
        super().__init__()
        self.unet, self.poses, self.image_size = prior.unet, poses, (prior.image_size, prior.image_size)
        self.prediction: Prediction = prior.schedule.prediction
        self._prior = (prior,)  # in a tuple, so that its networks are no sub-modules
        a = prior.schedule.alpha_bar.double().cpu()
        self.register_buffer("levels", torch.log(a / (1 - a)).float(), persistent=False)
        self.register_buffer("text", prior.encode_prompt([""]).cpu(), persistent=False)

    @property
    def prior(self) -> MVDream:
        """The prior, on the device of this module."""
        (prior,) = self._prior
        if prior.device != self.text.device:
            prior.to(self.text.device)
        return prior

    @torch.no_grad()
    def encode_images(self, rgb: Tensor) -> Tensor:
        """Return the posterior means of the VAE."""
        prior = self.prior
        return prior.posterior(rgb)[0] * prior.scaling_factor

    @torch.no_grad()
    def decode_images(self, x: Tensor) -> Tensor:
        return self.prior.decode_latents(x.float()).float()

    def timestep(self, logsnr: Tensor) -> Tensor:
        """Convert log-SNR (B,) to fractional time steps of the prior in [0, T - 1]."""
        rising = self.levels.flip(0)
        level = logsnr.clamp(rising[0], rising[-1])
        high = torch.searchsorted(rising, level).clamp(1, len(rising) - 1)
        fraction = (level - rising[high - 1]) / (rising[high] - rising[high - 1])
        return len(rising) - high - fraction

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """See `sampler.ViewModel`."""
        last = torch.full_like(logsnr, len(self.levels) - 1)
        t = torch.stack([torch.where(keep, 0.0, last), self.timestep(logsnr)], dim=1).flatten()
        poses = relative_poses(c2w.float()) if self.poses == "relative" else c2w.float()
        camera = camera_vector(poses.flatten(0, 1)) * keep.repeat_interleave(2)[:, None]
        pair = torch.stack([x, z], dim=1).flatten(0, 1)
        text = self.text.expand(len(pair), -1, -1)
        out = self.prior.predict(pair, t, text, camera, 2, torch.zeros_like(pair))
        return out.unflatten(0, (len(x), 2))[:, 1].float()
