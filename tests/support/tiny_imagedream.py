"""A small ImageDream: the recorded reference's tensor names, with the recording's weights, as file and as folder."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.support.ldm_names import to_ldm, vae_prefixes
from tests.support.parity_files import DEFAULT
from tests.support.tiny_prior import letter_tokenizer, open_clip_names, tiny_text_encoder, tiny_vae
from threedgen.guidance.weights import ldm

RECORDING = DEFAULT / "imagedream" / "imagedream.safetensors"
"""From bytedance/ImageDream at 26c3972, extern/ImageDream/imagedream/ldm/modules: MultiViewUNetModel of
diffusionmodules/openaimodel.py and FrozenOpenCLIPEmbedder of encoders/modules.py (open_clip 2.24). The weights of both
are `fill`; the metadata have their names and shapes."""
NAME = "sd-v2.1-base-4view-ipmv.pt"


def fill(name: str, shape: list[int]) -> Tensor:
    """Return the random weights of the recording for a tensor name of the reference."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) < 2:
        return torch.from_numpy(0.2 * values + (1 if name.endswith("weight") else 0))
    return torch.from_numpy(values / np.sqrt(np.prod(shape[1:])).astype(np.float32))


def recording() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the recorded arrays, and the weights of the UNet and of the image encoder by the reference's names."""
    with safe_open(RECORDING, "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        shapes = json.loads(file.metadata()["shapes"])
    unet = {name: fill(name, shape) for name, shape in shapes["unet"].items()}
    return arrays, unet, {name: fill(f"visual.{name}", shape) for name, shape in shapes["visual"].items()}


def networks() -> tuple[dict[str, Tensor], dict[str, Tensor], Any, Any]:
    """Return UNet and image encoder, whose features fit together, text encoder and VAE."""
    _, unet, visual = recording()
    unet["image_embed.proj_in.weight"] = fill("image_embed.proj_in.weight", [24, 160])
    return unet, visual, tiny_text_encoder(100, hidden_size=24, num_attention_heads=1, hidden_act="gelu"), tiny_vae()


def imagedream_file(folder: Path) -> Path:
    """Write a checkpoint with the names of the released one, and CLIP's tokenizer to `folder`/clip."""
    unet, visual, encoder, vae = networks()
    parts = {
        "model.diffusion_model.": unet,
        "vae_model.": to_ldm(vae.state_dict(), vae_prefixes(vae.config)),
        "clip_model.model.": open_clip_names(encoder),
        "clip_model.model.visual.": visual,
    }
    torch.save({prefix + name: t for prefix, named in parts.items() for name, t in named.items()}, folder / NAME)
    letter_tokenizer().save_pretrained(folder / "clip")
    return folder / NAME


def imagedream_folder(folder: Path) -> Path:
    """Write the same networks in the layout of the diffusers port (ashawkey/imagedream-ipmv-diffusers)."""
    unet, visual, encoder, vae = networks()
    image = ldm.convert_image_encoder(visual)
    vision = {f"vision_model.{key}": tensor for key, tensor in image.tensors.items()}
    for name, config, tensors in (
        ("unet", {"_class_name": "MultiViewUNetModel"}, unet),
        ("image_encoder", image.config | {"model_type": "clip_vision_model"}, vision),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file({key: t.contiguous() for key, t in tensors.items()}, folder / name / "model.safetensors")
    encoder.save_pretrained(folder / "text_encoder")
    vae.save_pretrained(folder / "vae")
    tokenizer = letter_tokenizer()
    tokenizer.pad_token = "!"  # as in Stable Diffusion 2
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear").save_pretrained(folder / "scheduler")
    return folder
