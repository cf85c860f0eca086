"""Convert checkpoints of the latent-diffusion (ldm) code base to stock diffusers and transformers networks.

Each `convert_*` function reads the architecture from tensor names and shapes. The number of attention heads cannot be
read; it is that of the released models. All functions raise ConfigError for unknown tensors.
"""

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from threedgen.config import ConfigError

from .files import Json

Tensors = Mapping[str, Tensor]  # by name
KINDS = ("weight", "bias")
LATENT_SIZE = {True: 32, False: 64}
"""Side of the latents in training, for networks with cameras (True, MVDream) and without; no file contains it."""
PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "open_clip": "cond_stage_model.model.",
    "clip": "cond_stage_model.transformer.",
}


class Converted(NamedTuple):
    """Converted network: arguments of a diffusers or transformers class, and tensors with the names of that class."""

    config: Json
    tensors: dict[str, Tensor]


def split_checkpoint(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a single file by network (keys of PARTS), with names without prefix; drop other tensors."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for part, prefix in PARTS.items():
            if name.startswith(prefix):
                parts.setdefault(part, {})[name.removeprefix(prefix)] = tensor
    return parts


def convert_unet(tensors: Tensors) -> Converted:
    """Convert ldm's UNetModel to UNet2DConditionModel; MVDream's camera embedding becomes the class embedding."""
    config = unet_config(tensors)
    renamed = {f"class_embedding.linear_{1 + n // 2}.{k}": f"camera_embed.{n}.{k}" for n in (0, 2) for k in KINDS}
    renamed = {new: old for new, old in renamed.items() if old in tensors}
    plain = {name: value for name, value in config.items() if name != "class_embed_type"}
    renamed |= convert_ldm_unet_checkpoint({PARTS["unet"] + name: name for name in tensors}, plain)
    if unknown := sorted(set(tensors) - set(renamed.values())):
        raise ConfigError(f"unknown tensor {unknown[0]!r} in the UNet: another architecture than the ldm UNet")
    return Converted(config, {new: tensors[old] for new, old in renamed.items()})


def unet_config(tensors: Tensors) -> Json:
    """Return the arguments of UNet2DConditionModel for an ldm UNet, whose blocks are numbered through all levels."""
    inputs = count(tensors, r"input_blocks\.(\d+)\.")
    levels = 1 + len(indices(tensors, r"input_blocks\.(\d+)\.0\.op\.weight"))
    per_level = inputs // levels
    if inputs % levels or per_level < 2:
        raise ConfigError(f"not an ldm UNet: {inputs} input blocks do not form {levels} equal levels")
    starts = [1 + level * per_level for level in range(levels)]
    channels = [size(tensors, f"input_blocks.{i}.0.out_layers.3.weight", 0) for i in starts]
    blocks = r"{}\.1\.transformer_blocks\.(\d+)\."
    depths = [count(tensors, blocks.format(rf"input_blocks\.{i}")) for i in starts]
    middle = count(tensors, blocks.format("middle_block"))
    if depths[-1] not in (0, middle) or middle == 0:
        raise ConfigError("the UNet's middle block needs as many transformer layers as its lowest level")
    linear = "middle_block.1.proj_in.weight" in tensors and tensors["middle_block.1.proj_in.weight"].ndim == 2
    cameras = "camera_embed.0.weight" in tensors
    config = {
        "sample_size": LATENT_SIZE[cameras],
        "in_channels": size(tensors, "input_blocks.0.0.weight", 1),
        "out_channels": size(tensors, "out.2.weight", 0),
        "block_out_channels": channels,
        "layers_per_block": per_level - 1,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)],
        "transformer_layers_per_block": [d or middle for d in depths],
        # diffusers' name for the number of heads: 1 per 64 channels in Stable Diffusion 2, else 8
        "attention_head_dim": [max(1, c // 64) if linear else 8 for c in channels],
        "use_linear_projection": linear,
        "cross_attention_dim": size(tensors, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
    }
    if cameras:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = size(tensors, "camera_embed.0.weight", 1)
    return config


def convert_vae(tensors: Tensors) -> Converted:
    """Convert ldm's AutoencoderKL, with attention in the middle block only, to diffusers' AutoencoderKL."""
    config = vae_config(tensors)
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    renamed = convert_ldm_vae_checkpoint(found, config)
    if len(renamed) != len(found):
        raise ConfigError(f"{len(found) - len(renamed)} tensors are unknown in the VAE: not an ldm VAE's architecture")
    return Converted(config, renamed)


def vae_config(tensors: Tensors) -> Json:
    levels = count(tensors, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    if levels == 0:
        raise ConfigError("not an ldm VAE: there is no tensor encoder.down.0.block.0.conv1.weight")
    return {
        "in_channels": size(tensors, "encoder.conv_in.weight", 1),
        "out_channels": size(tensors, "decoder.conv_out.weight", 0),
        "latent_channels": size(tensors, "decoder.conv_in.weight", 1),
        "block_out_channels": [size(tensors, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)],
        "layers_per_block": count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def convert_open_clip(tensors: Tensors) -> Converted:
    """Convert OpenCLIP's text encoder to CLIPTextModel without the last block, unused in Stable Diffusion 2."""
    layers = count(tensors, r"transformer\.resblocks\.(\d+)\.") - 1
    if layers < 1:
        raise ConfigError("not an OpenCLIP text encoder: it has too few tensors named transformer.resblocks")
    unused = (f"transformer.resblocks.{layers}.", "visual.", "text_projection", "logit_scale", "attn_mask")
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    width = size(tensors, "token_embedding.weight", 1)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    renamed = short_names(convert_open_clip_checkpoint(model, used, prefix=""))
    fused = sum(name.endswith((".in_proj_weight", ".in_proj_bias")) for name in used)
    if len(renamed) != len(used) + 2 * fused:
        raise ConfigError("unknown tensors in the text encoder: another architecture than OpenCLIP's")
    return Converted(clip_config(renamed, layers, "gelu"), renamed)


def convert_clip(tensors: Tensors) -> Converted:
    """Convert a text encoder with the tensor names of transformers, as in Stable Diffusion 1, to CLIPTextModel."""
    renamed = short_names(tensors)
    layers = count(renamed, r"encoder\.layers\.(\d+)\.")
    if layers == 0:
        raise ConfigError("not a CLIP text encoder: it has no tensors named encoder.layers")
    return Converted(clip_config(renamed, layers, "quick_gelu"), renamed)


def short_names(tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors with the names of transformers 5: no prefix "text_model." and no buffer position_ids."""
    renamed = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    renamed.pop("embeddings.position_ids", None)
    return renamed


def clip_config(tensors: Tensors, layers: int, activation: str) -> Json:
    """Return the arguments of CLIPTextConfig: one head per 64 channels; start and end token are the last two tokens."""
    vocab, width = (size(tensors, "embeddings.token_embedding.weight", i) for i in (0, 1))
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": size(tensors, "encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": size(tensors, "embeddings.position_embedding.weight", 0),
        "hidden_act": activation,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": 0,
    }


def indices(names: Iterable[str], pattern: str) -> set[int]:
    """Return the integers that the first group of a regular expression matches at the start of the names."""
    matches = (re.match(pattern, name) for name in names)
    return {int(m[1]) for m in matches if m and len(m[1]) < 10}


def count(names: Iterable[str], pattern: str) -> int:
    """Return the number of `indices`. Raises ConfigError unless the indices are 0, 1, 2, ... without a gap."""
    found = indices(names, pattern)
    if found != set(range(len(found))):
        readable = pattern.replace("\\.", ".").replace(r"(\d+)", "N")
        raise ConfigError(f"another architecture: the tensors named {readable} are not numbered without a gap")
    return len(found)


def size(tensors: Tensors, name: str, dim: int) -> int:
    """Return the length of dimension `dim` of the tensor `name`. Raises ConfigError if there is none."""
    if name not in tensors:
        raise ConfigError(f"another architecture: there is no tensor {name!r}")
    shape = tensors[name].shape
    if dim >= len(shape):
        raise ConfigError(f"another architecture: tensor {name!r} has the shape {tuple(shape)}")
    return shape[dim]
