"""Novel-view model on latents that uses the UNet of the MVDream prior.

The UNet's attention between views connects two frames: the clean condition at timestep 0 and the noisy target. The
prompt is empty, and the input for a coarse prediction is zero. A dropped condition is noise at the last timestep, with
zero vectors for both cameras. Intrinsics are ignored, because the prior takes camera directions only.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.priors.mvdream import MVDream

from .logsnr import Prediction
from .rays import relative_poses


class LatentPairs(nn.Module):
    """Implementation of `sampler.ViewModel` with an MVDream prior. Only the prior's UNet is a trainable submodule."""

    clip = None
    levels: Tensor
    text: Tensor

    def __init__(self, prior: MVDream, poses: Literal["absolute", "relative"] = "absolute") -> None:
        """Wrap a prior; `poses`: camera poses in world axes ("absolute"), or in those of the condition's camera."""
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
        """Encode images (N, H, W, 3) in [0, 1] as scaled means of the VAE's posterior (N, C, h, w)."""
        prior = self.prior
        return prior.posterior(rgb)[0] * prior.scaling_factor

    @torch.no_grad()
    def decode_images(self, x: Tensor) -> Tensor:
        return self.prior.decode_latents(x.float()).float()

    def timestep(self, logsnr: Tensor) -> Tensor:
        """Convert log-SNR (B,) to fractional timesteps (B,) of the prior in [0, T - 1]; larger is noisier."""
        rising = self.levels.flip(0)
        level = logsnr.clamp(rising[0], rising[-1])
        high = torch.searchsorted(rising, level).clamp(1, len(rising) - 1)
        fraction = (level - rising[high - 1]) / (rising[high] - rising[high - 1])
        return len(rising) - high - fraction

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        """Predict the target latents or their noise, (B, C, h, w) float32; arguments as in `sampler.ViewModel`."""
        last = torch.full_like(logsnr, len(self.levels) - 1)
        t = torch.stack([torch.where(keep, 0.0, last), self.timestep(logsnr)], dim=1).flatten()
        poses = relative_poses(c2w.float()) if self.poses == "relative" else c2w.float()
        camera = camera_vector(poses.flatten(0, 1)) * keep.repeat_interleave(2)[:, None]
        pair = torch.stack([x, z], dim=1).flatten(0, 1)
        text = self.text.expand(len(pair), -1, -1)
        out = self.prior.predict(pair, t, text, camera, 2, torch.zeros_like(pair))
        return out.unflatten(0, (len(x), 2))[:, 1].float()
