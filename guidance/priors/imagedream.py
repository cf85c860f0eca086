"""ImageDream (Wang and Shi 2023, arXiv 2312.02201): MVDream conditioned on an image of the object.

The image enters twice. The local controller turns the features of CLIP's image encoder into tokens for cross-attention.
The pixel controller adds the image's latents as one more view of the object, with zeros as its camera. As in MVDream,
azimuth 0 is the front, which the image shows; all views should have the elevation of the image.
"""

from typing import Any, Self

import torch
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from threedgen.config import ConfigError
from threedgen.geometry.views import GREY, centred
from threedgen.guidance.attention.joined import unet_output
from threedgen.guidance.guidance import Features, add_view
from threedgen.guidance.matte import reference_foreground
from threedgen.guidance.priors.options import ImageDreamConfig
from threedgen.run.arrays import Array

from .from_options import load_prior, with_additions
from .mvdream import MVDream

OBJECT_SHARE = 0.8
"""Fraction of the image that the object's longer side fills, as in LGM and DreamGaussian (border_ratio 0.2)."""
FEATURES, LATENTS = "features", "latents"
"""Keys of the result of `ImageDream.reference`: features (1, L, D) of CLIP's image encoder, latents (1, C, h, w)."""


def build(options: ImageDreamConfig, device: torch.device | str = "cpu") -> "ImageDream":
    """Build the prior from its options, on a device. Raises ConfigError if image or weights are missing or damaged."""
    cut = reference_foreground(options)
    if cut is None:
        raise ConfigError("is missing. Give an image of the object, image=car.png", "image")
    prior = with_additions(load_prior(ImageDream, options, device), options)
    prior.pixel_control = options.controller == "pixel"
    return prior.with_image(cut)


class ImageDream(MVDream):
    """Multi-view latent diffusion prior with an image of the object as its reference.

    Attributes:
        pixel_control: whether the latents of the image are one more view of the object. False: the image enters only as
            tokens for cross-attention.
        images: the cut-out object, centred on a transparent square, at two sizes: s = `encoder_size` for CLIP's image
            encoder and s = `image_size` for the VAE. Premultiplied RGBA (s, s, 4) in [0, 1]; () before `with_image`.
        mean, std: (3,), mean and standard deviation of colours with which CLIP's image encoder normalises its input.
    """

    parts = ImageDreamConfig.parts
    composites_reference = True
    pixel_control = True
    images: tuple[Tensor, ...] = ()

    def with_image(self, cut: Array) -> Self:
        """Set the image that conditions all guidance, and return self.

        `cut` is the cut-out object as NumPy array, straight (not premultiplied) RGBA (h, w, 4) in [0, 1].
        """
        self.images = tuple(
            centred(torch.from_numpy(cut), s, s, OBJECT_SHARE) for s in (self.encoder_size, self.image_size)
        )
        return self.to(self.device)

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self.images = tuple(image.to(self.device) for image in self.images)
        self.mean, self.std = (torch.tensor(x, device=self.device) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        return self

    @property
    def encoder(self) -> CLIPVisionModel:
        """CLIP's image encoder, which every prior of this class has."""
        assert self.image_encoder is not None  # among `parts`
        return self.image_encoder

    @property
    def encoder_size(self) -> int:
        """Height and width in pixels of the images that CLIP's image encoder takes."""
        config: Any = self.encoder.config
        return int(config.image_size)

    @torch.no_grad()
    def reference(self, text: Tensor, background: Tensor | None = None) -> Features | None:
        if not self.images:
            return None
        grey = GREY if background is None else background
        small, large = ((image[..., :3] + (1 - image[..., 3:]) * grey)[None] for image in self.images)
        return {FEATURES: self.image_features(small), LATENTS: self.encode_views(large)}

    def image_features(self, images: Tensor) -> Tensor:
        """Return the penultimate hidden state (B, L, D) of CLIP's image encoder for images (B, s, s, 3) in [0, 1].

        The side s is `encoder_size`.
        """
        pixels = (images - self.mean) / self.std
        with self.autocast():
            return self.encoder(pixels.permute(0, 3, 1, 2), output_hidden_states=True).hidden_states[-2].float()

    def network(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        reference: Features | None = None,
    ) -> Tensor:
        """Return the output of the UNet (B, C, h, w) float32, noise or v, for the views of B / n_view objects.

        Args:
            x, t: noisy latents (B, C, h, w) and timesteps, (B,) or (); the views of an object are consecutive.
            text: embeddings (B, L, D).
            camera: camera vectors (B, 16) from the method `camera`; None: no cameras.
            n_view: number of views per object in `x`. If the attribute `pixel_control` is True, `camera` is not None
                and n_view > 1, the latents of the reference image are added here as one more view per object, which is
                not part of the result.
            reference: CLIP features and latents of R images from the method `reference`, where R divides the number of
                objects. Each image serves B / (n_view R) consecutive objects. None: zeros, which mean "no image".
        """
        objects, frames = len(x) // n_view, n_view
        features, latents = self.no_image if reference is None else (reference[FEATURES], reference[LATENTS])
        if self.pixel_control and camera is not None and n_view > 1:
            frames, t = n_view + 1, t.reshape(-1).expand(len(x))
            x = add_view(x, latents.to(x).repeat_interleave(objects // len(latents), dim=0))
            t, text = (add_view(part, part[n_view - 1 :: n_view]) for part in (t, text))
            camera = add_view(camera, torch.zeros_like(camera[:objects]))
        x = x.to(self.dtype if self.half_weights else torch.float32)
        with self.autocast():
            tokens = self.unet.image_embed(features.to(x))
            tokens = tokens.repeat_interleave(len(x) // len(tokens), dim=0)
            out = unet_output(
                self.unet, x, t, text.to(x.dtype), camera, frames, factor=self.factor, image_tokens=tokens
            )
        return out.float().unflatten(0, (objects, frames))[:, :n_view].flatten(0, 1)

    @property
    def no_image(self) -> tuple[Tensor, Tensor]:
        """Zeros in place of a reference image, if there is none: CLIP features (1, L, D), latents (1, C, h, w)."""
        config: Any = self.encoder.config
        count = (self.encoder_size // config.patch_size) ** 2 + 1
        features = torch.zeros(1, count, config.hidden_size, device=self.device)
        return features, torch.zeros(1, *self.latent_shape, device=self.device)
