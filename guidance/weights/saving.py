"""Save a latent prior as a folder in diffusers format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import __version__
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from threedgen.config import ConfigError
from threedgen.guidance.schedule import Schedule
from threedgen.run.disk import write_json

from . import files
from .files import Json
from .loading import COARSE, CONFIG, IMAGE_ENCODER, SECOND, TENSORS

if TYPE_CHECKING:
    from threedgen.guidance.priors.latent_diffusion import LatentDiffusion


def save(prior: LatentDiffusion, folder: Path) -> None:
    """Write the prior to a diffusers folder with float16 tensors and check sums (SHA256SUMS).

    An earlier saved prior in `folder` is replaced; other files in it, such as README.md, stay. Raises ConfigError if
    the folder has files, but no saved prior, a weight overflows in float16, or the prior is SDXL or ImageDream.
    """
    check_savable(prior)
    with files.replaced_folder(folder, "model_index.json") as part:
        network: Any  # a diffusers model
        for name, network in prior.networks.items():
            if name != "text_encoder":
                config = json.loads(network.to_json_string())
                config.pop("_name_or_path", None)  # a path of this machine
                write_json(part / name / CONFIG, config)
                files.save_tensors(network, part / name / TENSORS)
        prior.text_encoder.config.save_pretrained(part / "text_encoder")
        prior.tokenizer.save_pretrained(part / "tokenizer")
        # transformers 4 and the folders on the hub have this prefix; transformers 5 reads both forms
        files.save_tensors(prior.text_encoder, part / "text_encoder" / "model.safetensors", "text_model.")
        scheduler(prior.schedule).save_config(part / "scheduler")
        write_json(part / "model_index.json", model_index(prior))


def check_savable(prior: LatentDiffusion) -> None:
    """Raise ConfigError if `save` cannot write the prior, because it is SDXL or ImageDream."""
    if {SECOND, IMAGE_ENCODER} & prior.networks.keys():
        raise ConfigError("weights of SDXL and ImageDream can be read but not saved. Choose another model")


def scheduler(schedule: Schedule) -> DDIMScheduler:
    betas = schedule.betas.cpu()
    linear = torch.equal(Schedule.linear(T=schedule.T).betas, betas)
    known = linear or torch.equal(Schedule.scaled_linear(T=schedule.T).betas, betas)
    return DDIMScheduler(  # keyword arguments: `from_config` of another class takes positional ones for defaults
        num_train_timesteps=schedule.T,
        beta_start=0.0001 if linear else 0.00085,
        beta_end=0.02 if linear else 0.012,
        beta_schedule="linear" if linear else "scaled_linear",
        trained_betas=None if known else betas.tolist(),
        prediction_type=schedule.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def model_index(prior: LatentDiffusion) -> Json:
    """Return the content of model_index.json, which names the class of each network for diffusers pipelines."""
    coarse = {} if prior.coarse is None else {COARSE: [type(prior.coarse).__module__, type(prior.coarse).__name__]}
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": __version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", type(prior.tokenizer).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    } | coarse
