"""The second form of a novel-view model: the multi-view prior's own UNet, on its latents.

Its joined attention carries appearance between views already. Two frames are joined; the condition is clean, at time
step 0, and the target as noisy as it is; the words are empty, and zeros take the place of a coarse prediction. Where
the condition is dropped, it is noise at the last time step, and both cameras are zero. The intrinsics are not used:
this prior sees directions only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from threedgen.guidance.multiview.joined import camera_vector
from threedgen.guidance.priors.mvdream import MVDream

from .logsnr import Prediction
from .rays import relative_poses


class LatentPairs(nn.Module):
    """A ``sampler.ViewModel`` around a ``prior``, whose UNet alone is part of this module (and trained in place)."""

    clip = None
    levels: Tensor
    words: Tensor

    def __init__(self, prior: MVDream, poses: Literal["absolute", "relative"] = "absolute") -> None:
        """``poses``: "relative" tells the network the cameras as seen from that of the condition."""
        super().__init__()
        self.unet, self.poses, self.picture_size = prior.unet, poses, (prior.image_size, prior.image_size)
        self.prediction: Prediction = prior.schedule.prediction
        self._around = (prior,)  # in a tuple: no sub-modules
        a = prior.schedule.alpha_bar.double().cpu()
        self.register_buffer("levels", torch.log(a / (1 - a)).float(), persistent=False)
        self.register_buffer("words", prior.encode_prompt([""]).cpu(), persistent=False)

    @property
    def prior(self) -> MVDream:
        """On the device of this module."""
        (prior,) = self._around
        if prior.device != self.words.device:
            prior.to(self.words.device)
        return prior

    @torch.no_grad()
    def from_pictures(self, rgb: Tensor) -> Tensor:
        """Means of the VAE's posterior."""
        prior = self.prior
        return prior.posterior(rgb)[0] * prior.scaling_factor

    @torch.no_grad()
    def to_pictures(self, x: Tensor) -> Tensor:
        return self.prior.decode_latents(x.float()).float()

    def timestep(self, logsnr: Tensor) -> Tensor:
        """The prior's time step, with fractions, of a noise level (B,): within [0, T - 1]."""
        rising = self.levels.flip(0)
        level = logsnr.clamp(rising[0], rising[-1])
        high = torch.searchsorted(rising, level).clamp(1, len(rising) - 1)
        share = (level - rising[high - 1]) / (rising[high] - rising[high - 1])
        return len(rising) - high - share

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """See ``sampler.ViewModel``."""
        last = torch.full_like(logsnr, len(self.levels) - 1)
        t = torch.stack([torch.where(keep, 0.0, last), self.timestep(logsnr)], dim=1).flatten()
        poses = relative_poses(c2w.float()) if self.poses == "relative" else c2w.float()
        camera = camera_vector(poses.flatten(0, 1)) * keep.repeat_interleave(2)[:, None]
        pair = torch.stack([x, z], dim=1).flatten(0, 1)
        words = self.words.expand(len(pair), -1, -1)
        out = self.prior.predict(pair, t, words, camera, 2, torch.zeros_like(pair))
        return out.unflatten(0, (len(x), 2))[:, 1].float()
