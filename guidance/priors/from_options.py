"""Build latent diffusion priors from their options.

The function `build` of each prior calls `load_prior`, then `with_additions`, and then sets what only this prior has.
"""

from typing import TypeVar

import torch

from threedgen.config import ConfigError
from threedgen.guidance.attention import joined
from threedgen.guidance.options import LatentPriorConfig
from threedgen.guidance.schedule import Prediction

from .latent_diffusion import LatentDiffusion
from .options import StableDiffusionConfig

P = TypeVar("P", bound=LatentDiffusion)


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> LatentDiffusion:
    """Build a prior of single images from its options. Weights with a multi-view UNet work too, without cameras.

    Raises ConfigError if files are missing or damaged.
    """
    return with_additions(load_prior(LatentDiffusion, options, device), options)


def load_prior(kind: type[P], options: LatentPriorConfig, device: torch.device | str) -> P:
    """Build a prior of class `kind` from its options, on a device.

    The LoRAs and textual inversions named in `options` are not loaded; `with_additions` adds them.

    Raises ConfigError if files are missing or damaged, or an option does not fit the weights or the device.
    """
    o = options
    if o.attention == "xformers" and torch.device(device).type != "cuda":
        raise ConfigError(f"'xformers' computes on a CUDA device, not on {device}; choose attention=sdpa", "attention")
    prediction: Prediction | None = "v_prediction" if o.prediction == "v" else o.prediction
    prior = kind.load(o.weights, device, o.dtype, o.tokenizer, o.image_size, prediction, o._compact)
    joined.set_attention(prior.unet, o.attention)
    prior.cuda_graph = o.cuda_graph
    return prior.with_draft(o.draft)


def with_additions(prior: P, options: LatentPriorConfig) -> P:
    """Add the LoRAs and textual inversions named in `options` to `prior`, in place, and return `prior`."""
    if options.loras or options.embeddings:
        from threedgen.guidance.weights import additions  # takes time to import

        additions.add(prior, options.loras, options.embeddings)
    return prior
