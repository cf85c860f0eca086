"""MVDream (arXiv 2308.16512): a text-to-image diffusion model that samples several views of one object at once."""

from pathlib import Path

import torch
from torch import Tensor

from threedgen.guidance.attention.joined import SEPARATE_LEVELS, camera_vector
from threedgen.guidance.priors.options import MVDreamConfig
from threedgen.guidance.sampling import Generators
from threedgen.guidance.weights import subject_weights

from .from_options import load_prior, with_additions
from .latent_diffusion import LatentDiffusion


def build(options: MVDreamConfig, device: torch.device | str = "cpu") -> "MVDream":
    """Build the prior (diffusion model) from its config section. Raises ConfigError if files are missing or damaged."""
    prior, file = load_prior(MVDream, options, device), options.personalisation
    plain = None if file is None else subject_weights.checksum(prior.unet, prior.text_encoder)
    prior = with_additions(prior, options)
    if file is not None:
        subject_weights.apply(prior, Path(file).expanduser(), options.personalisation_strength, plain)
    prior.guide_views = options.guide_views
    return prior


class MVDream(LatentDiffusion):
    """Latent diffusion prior that denoises the views of an object together and is conditioned on their cameras."""

    needs_camera = timestep_per_view = True

    @property
    def separate_levels(self) -> bool:
        return bool(self.unet.config.get(SEPARATE_LEVELS))

    @property
    def completes_views(self) -> bool:
        return self.separate_levels or self.has_code

    def camera(self, c2w: Tensor) -> Tensor:
        return camera_vector(c2w)

    @property
    def uses_coarse_predictor(self) -> bool:
        """Whether sampling uses the coarse predictor, a network that predicts clean latents from text and camera.

        Samples then start from its prediction. A random vector, the object code, decides what the prompt leaves open.
        False: the prior has no coarse predictor, or this predictor does not know the objects of the prompts (priors
        trained on the user's assets, or with words added by textual inversion, or by DreamBooth, unless the word is the
        only one and the object code of its subject is known).
        """
        if self.coarse is None or self.embedded_words:
            return False
        known = not self.identifiers or (len(self.identifiers) == 1 and self.coarse.subject is not None)
        return bool(self.coarse.config["starts_samples"]) and known

    def sample_code(self, text: Tensor, generator: Generators = None, similar_to: Tensor | None = None) -> Tensor:
        return super().sample_code(text, generator, similar_to) if self.uses_coarse_predictor else text

    def coarse_latents(self, text: Tensor, c2w: Tensor | None, text_guidance: bool = True) -> Tensor | None:
        if c2w is None or not self.uses_coarse_predictor:  # without a camera: the mean over all cameras
            return None
        return self.predict_coarse(text, c2w, text_guidance)
