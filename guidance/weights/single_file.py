"""Read checkpoints in a single file of the latent-diffusion (ldm) code base, and convert all their networks."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from threedgen.config import ConfigError
from threedgen.guidance.schedule import Prediction

from .families import check_family, traits
from .files import read_header, read_tensors
from .ldm import Converted, Tensors, convert_clip, convert_image_encoder, convert_open_clip, convert_unet, convert_vae
from .loading import IMAGE_ENCODER, SECOND

V_LATENT_SIZE, PIXELS = 96, 8
"""Side of the latents in training of Stable Diffusion 2 with v-prediction; pixels per latent pixel."""
SDXL_SCALING = 0.13025  # factor of the latents of SDXL; other models have the default of diffusers
PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.model.": "open_clip",
    "cond_stage_model.transformer.": "clip",
    "conditioner.embedders.0.transformer.": "clip",
    "conditioner.embedders.1.model.": SECOND,
    "vae_model.": "vae",  # this and the next two: ImageDream
    "clip_model.model.visual.": IMAGE_ENCODER,
    "clip_model.model.": "open_clip",
}
"""Start of tensor names in a single file, and the network that they belong to."""


class SingleFile(NamedTuple):
    """Networks of a single-file checkpoint, converted to the configs and tensor names of diffusers and transformers.

    Attributes:
        networks: the networks by the names of their folders in diffusers format: "unet", "vae", "text_encoder",
            "text_encoder_2" of SDXL, and "image_encoder" (CLIP's) of ImageDream.
        open_clip: whether the first text encoder is OpenCLIP's (Stable Diffusion 2) instead of OpenAI's.
        prediction: output of the UNet, "epsilon" or "v_prediction"; None if neither the file nor its kind of model
            determines it.
    """

    networks: dict[str, Converted]
    open_clip: bool
    prediction: Prediction | None


def convert_file(path: Path, prediction: Prediction | None = None) -> SingleFile:
    """Read a checkpoint in one file, and convert its networks to diffusers and transformers format.

    Supported are MVDream, ImageDream, SDXL, Stable Diffusion 1 and 2 (also inpainting and depth). Raises ConfigError
    for another model, or if a network is missing.

    Args:
        prediction: "epsilon" or "v_prediction", if the user knows what the UNet predicts; None: as the file declares.
            It matters only for a Stable Diffusion 2 file that declares no image size: the UNet's config then has the
            latent size (`sample_size`) of images of 768 pixels for "v_prediction", else of 512.

    Returns:
        Config and tensors of each network. The attribute `prediction` is what the file or its kind of model determines,
        or None; it does not depend on the argument.
    """
    tensors, metadata = read_tensors(path), read_header(path)[1]
    check_family(path, tensors)
    parts = split_checkpoint(tensors)
    open_clip = "open_clip" in parts
    if missing := [part for part in ("unet", "vae", "open_clip" if open_clip else "clip") if part not in parts]:
        prefix = next(prefix for prefix, part in PREFIXES.items() if part == missing[0])
        advice = "Merge one into it, or give a folder in diffusers format"
        problem = f"{path} lacks the network {missing[0]}: it has no tensor named {prefix}..."
        raise ConfigError(f"{problem} {advice}", "weights")
    unet, text = convert_unet(parts["unet"]), convert_open_clip if open_clip else convert_clip
    sdxl = "addition_embed_type" in unet.config
    vae = convert_vae(parts["vae"], SDXL_SCALING if sdxl else None)
    networks = {"unet": unet, "vae": vae, "text_encoder": text(parts["open_clip" if open_clip else "clip"])}
    if sdxl:
        if SECOND not in parts:
            raise ConfigError(f"{path} lacks the second text encoder of SDXL", "weights")
        networks[SECOND] = second = convert_open_clip(parts[SECOND], projection=True)
        rest = unet.config["projection_class_embeddings_input_dim"] - second.config["projection_dim"]
        unet.config["addition_time_embed_dim"] = max(1, rest // 6)  # beside the pooled text, six numbers are embedded
    # MVDream, Stable Diffusion 1, and the inpainting and depth models
    epsilon = not (open_clip or sdxl) or "class_embed_type" in unet.config or unet.config["in_channels"] != 4
    found = traits(path, tensors, metadata, sd2=open_clip and not epsilon)
    declared = found.prediction or ("epsilon" if epsilon else None)
    if found.image_size is not None:
        unet.config["sample_size"] = found.image_size // PIXELS
    elif open_clip and not epsilon and (prediction or declared) == "v_prediction":
        unet.config["sample_size"] = V_LATENT_SIZE
    if IMAGE_ENCODER in parts:
        networks[IMAGE_ENCODER] = convert_image_encoder(parts[IMAGE_ENCODER])
    return SingleFile(networks, open_clip, declared)


def split_checkpoint(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Group the tensors of a checkpoint in one file by network, such as "unet".

    Each network has a prefix, such as "first_stage_model." for the VAE, which is removed from the names. Tensors that
    have no known prefix are dropped.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for prefix, part in PREFIXES.items():
            if name.startswith(prefix):
                parts.setdefault(part, {})[name.removeprefix(prefix)] = tensor
    return parts
