"""Pipelines of diffusers with sized-down networks and random weights, their single files, and LoRAs for them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from tests.support.ldm_names import to_ldm, unet_prefixes, vae_prefixes
from tests.support.tiny_prior import (
    NO_CAMERA,
    cpu,
    letter_tokenizer,
    open_clip_names,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
)
from tests.support.tiny_sdxl import tiny_sdxl
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.weights.components import SecondText

KINDS = ["sd15", "sd21", "sdxl"]
LAYERS = ("attn2.to_q", "attn2.to_k", "proj_in", "ff.net.2", "q_proj", "out_proj")


def pipeline(unet: Any, text_encoder: Any, scheduler: Any = None) -> StableDiffusionPipeline:
    ddim = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(
        unet=unet.eval(), vae=tiny_vae(), text_encoder=text_encoder, tokenizer=letter_tokenizer(),
        scheduler=scheduler or ddim, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def pipelines(folder: Path) -> dict[str, Any]:
    """Make pipelines of Stable Diffusion 1.5, 2.1 and XL, by kind. That of XL is also saved in `folder`."""
    found: dict[str, Any] = {"sdxl": tiny_sdxl(folder)}
    for kind, linear in (("sd15", False), ("sd21", True)):
        unet = tiny_unet(use_linear_projection=linear, cross_attention_dim=32 + 32 * linear, **NO_CAMERA)
        found[kind] = pipeline(
            unet, tiny_text_encoder(82, hidden_size=32 + 32 * linear, eos_token_id=81, bos_token_id=80)
        )
    return found


def released(folder: Path) -> dict[str, Any]:
    """Make pipelines, by kind, whose heads and activations are those that a single file implies."""
    found: dict[str, Any] = {"sdxl": tiny_sdxl(folder, released=True)}
    for kind, more in {
        "sd15": {"use_linear_projection": False, "attention_head_dim": 8},
        "sd21": {"block_out_channels": (64, 64), "attention_head_dim": 1},
    }.items():
        unet = tiny_unet(**NO_CAMERA, cross_attention_dim=64, **more)
        found[kind] = pipeline(unet, tiny_text_encoder(100, hidden_size=64, num_attention_heads=1))
    return found


def single_file(kind: str, pipe: Any) -> dict[str, Tensor]:
    """Return the tensors of a pipeline under the names of its kind's single file."""
    encoder = pipe.text_encoder
    parts = {
        "model.diffusion_model.": to_ldm(pipe.unet.state_dict(), unet_prefixes(pipe.unet.config)),
        "first_stage_model.": to_ldm(pipe.vae.state_dict(), vae_prefixes(pipe.vae.config)),
    }
    if kind == "sd15":
        parts["cond_stage_model.transformer.text_model."] = encoder.state_dict()
    elif kind == "sd21":
        parts["cond_stage_model.model."] = open_clip_names(encoder)
    else:
        second = open_clip_names(pipe.text_encoder_2.text_model, more=False)
        second["text_projection"] = pipe.text_encoder_2.text_projection.weight.T
        parts["conditioner.embedders.0.transformer.text_model."] = encoder.state_dict()
        parts["conditioner.embedders.1.model."] = second
    return {prefix + name: t.contiguous() for prefix, named in parts.items() for name, t in named.items()}


def prior_of(pipe: Any) -> LatentDiffusion:
    own = deepcopy({name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)})
    second = SecondText(own["text_encoder_2"], deepcopy(pipe.tokenizer_2)) if "text_encoder_2" in own else None
    networks = (own["unet"], own["vae"], own["text_encoder"], deepcopy(pipe.tokenizer))
    return LatentDiffusion(*networks, second=second, image_size=16, dtype="fp32")


def lora(pipe: Any, form: str) -> dict[str, Tensor]:
    """Random low-rank changes of attention and feed-forward layers in a format of kohya, diffusers or peft."""
    tensors, generator = {}, cpu(1)
    short = {"unet": "lora_unet", "text_encoder": "lora_te1" if hasattr(pipe, "text_encoder_2") else "lora_te"}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, layer in getattr(pipe, part, nn.Identity()).named_modules():
            layers = (*LAYERS, "conv1", "conv2") if form.endswith("convolutions") else LAYERS
            other = form.endswith("text" if part == "unet" else "unet")
            if other or not name.endswith(layers) or "time_emb" in name:
                continue
            weight, kernel = layer.weight, layer.weight.shape[2:]
            a = torch.randn(4, weight.shape[1], *kernel, generator=generator) / 8
            b = torch.randn(weight.shape[0], 4, *(1 for _ in kernel), generator=generator) / 8
            if form.startswith("kohya"):
                name = name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
                stem = f"{short.get(part, 'lora_te2')}_{name.replace('.', '_')}"
                tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
                if not form.endswith("alpha"):
                    tensors[f"{stem}.alpha"] = torch.tensor(3.0)
            elif form == "diffusers":
                tensors |= {f"{part}.{name}.lora_A.weight": a, f"{part}.{name}.lora_B.weight": b}
            elif part == "unet":  # peft
                tensors |= {f"base_model.model.{name}.lora_{s}.weight": t for s, t in (("A", a), ("B", b))}
    return tensors


def states(networks: Any) -> dict[str, Tensor]:
    parts = ("unet", "text_encoder", "text_encoder_2")
    return {f"{p}.{n}": t for p in parts if p in networks for n, t in networks[p].state_dict().items()}
