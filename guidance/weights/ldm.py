"""Convert networks of the latent-diffusion (ldm) code base to stock networks of diffusers and transformers.

Each `convert_*` function infers the architecture from tensor names and shapes. The number of attention heads cannot be
inferred, so the number of the released models is assumed. All these functions raise ConfigError for unknown tensors.
"""

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

from diffusers.loaders import single_file_utils
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import short
from threedgen.guidance.attention.image_tokens import HEAD_WIDTH, IMAGE_TOKENS

from .files import Json

Tensors = Mapping[str, Tensor]  # by name
KINDS = ("weight", "bias")
LATENT_SIZE = {True: 32, False: 64}
"""Side of the latents in training, which no file contains. Key: whether the UNet has a camera input (MVDream)."""
SDXL_LATENT_SIZE = 128
SD2_TEXT_LAYERS = 23  # of OpenCLIP's 24 blocks, Stable Diffusion 2 does not use the last one
RESAMPLER = "image_embed."  # start of the names of ImageDream's resampler in a UNet
RESAMPLER_LAYERS = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}
"""Names in a layer of ImageDream's resampler: name in ImageDream -> name in diffusers."""
VISUAL = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    **{f"pre_layrnorm.{kind}": f"ln_pre.{kind}" for kind in KINDS},
    **{f"post_layernorm.{kind}": f"ln_post.{kind}" for kind in KINDS},
}
"""Names of tensors outside of the layers of CLIP's image encoder: name in transformers -> name in OpenCLIP."""
VISUAL_HEAD_WIDTH = 80  # channels per head of OpenCLIP's ViT-H image encoder; no file contains it


class Converted(NamedTuple):
    """Converted network: arguments of its diffusers or transformers class, and tensors by their names in that class."""

    config: Json
    tensors: dict[str, Tensor]


def convert_unet(tensors: Tensors) -> Converted:
    """Return config and tensors for diffusers' UNet2DConditionModel, from the tensors of a UNet.

    `tensors` have the names of the latent-diffusion (ldm) code base. MVDream's camera MLP becomes `class_embedding`.
    Raises ConfigError if the tensors have another architecture.
    """
    config, image = unet_config(tensors), convert_resampler(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(RESAMPLER)}
    renamed = {f"class_embedding.linear_{1 + n // 2}.{k}": f"camera_embed.{n}.{k}" for n in (0, 2) for k in KINDS}
    renamed = {new: old for new, old in renamed.items() if old in tensors}
    plain = {name: value for name, value in config.items() if name != "class_embed_type"}
    try:
        renamed |= single_file_utils.convert_ldm_unet_checkpoint(
            {single_file_utils.LDM_UNET_KEY + name: name for name in tensors}, plain
        )
    except KeyError as error:  # of SDXL's four tensors label_emb
        raise ConfigError(f"another architecture: there is no tensor {error}") from None
    if unknown := sorted(set(tensors) - set(renamed.values())):
        raise ConfigError(f"unknown tensor {short(unknown[0])} in the UNet: another architecture than the ldm UNet")
    return Converted(config, {new: tensors[old] for new, old in renamed.items()} | image)


def convert_resampler(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of ImageDream's resampler by their names in diffusers; {} for a UNet without resampler.

    The resampler turns features of CLIP's image encoder into tokens for cross-attention.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = re.fullmatch(rf"({re.escape(RESAMPLER)}layers\.\d+)\.(.+)\.(weight|bias)", name)
        if layer and layer[2] == "0.to_kv":
            key, value = tensor.chunk(2)
            renamed |= {f"{layer[1]}.attn.to_k.{layer[3]}": key, f"{layer[1]}.attn.to_v.{layer[3]}": value}
        elif layer:
            renamed[f"{layer[1]}.{RESAMPLER_LAYERS.get(layer[2], layer[2])}.{layer[3]}"] = tensor
        elif name.startswith(RESAMPLER):
            renamed[name] = tensor
    return renamed


def unet_config(tensors: Tensors) -> Json:
    """Infer the arguments of diffusers' UNet2DConditionModel from names and shapes of a UNet's tensors.

    The names are those of the latent-diffusion code base, such as "input_blocks.0.0.weight". Raises ConfigError if the
    tensors have another architecture.
    """
    # ldm numbers the input blocks of all levels consecutively; each level except the last ends with a downsampling `op`
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
    cameras, sdxl = "camera_embed.0.weight" in tensors, "label_emb.0.0.weight" in tensors
    config = {
        "sample_size": SDXL_LATENT_SIZE if sdxl else LATENT_SIZE[cameras],
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
    if RESAMPLER + "latents" in tensors:
        config[IMAGE_TOKENS] = {
            "image_width": size(tensors, RESAMPLER + "proj_in.weight", 1),
            "tokens": size(tensors, RESAMPLER + "latents", 1),
            "heads": size(tensors, RESAMPLER + "layers.0.0.to_q.weight", 0) // HEAD_WIDTH,
        }
    if cameras:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = size(tensors, "camera_embed.0.weight", 1)
    if sdxl:
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = 256
        config["projection_class_embeddings_input_dim"] = size(tensors, "label_emb.0.0.weight", 1)
    return config


def convert_vae(tensors: Tensors, scaling_factor: float | None = None) -> Converted:
    """Return config and tensors for diffusers' AutoencoderKL, from the tensors of a VAE.

    `tensors` have the names of the latent-diffusion (ldm) code base. `scaling_factor` is the factor from the VAE's
    latents to those of the UNet; None: the default of diffusers. Raises ConfigError if the tensors have another
    architecture, such as attention outside of the middle block.
    """
    config = vae_config(tensors) | ({} if scaling_factor is None else {"scaling_factor": scaling_factor})
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    renamed = single_file_utils.convert_ldm_vae_checkpoint(found, config)
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


def convert_open_clip(tensors: Tensors, projection: bool = False) -> Converted:
    """Return config and tensors for a CLIP text model of transformers, from the tensors of OpenCLIP's text encoder.

    If `projection` is False, the model is CLIPTextModel without the last block, as in Stable Diffusion 2; files that
    were converted from diffusers lack this block already. If True, it is CLIPTextModelWithProjection with all blocks,
    as for SDXL's second text encoder. Raises ConfigError if the tensors have another architecture.
    """
    blocks = count(tensors, r"transformer\.resblocks\.(\d+)\.")
    layers = blocks if projection or blocks == SD2_TEXT_LAYERS else blocks - 1
    if layers < 1:
        raise ConfigError("not an OpenCLIP text encoder: it has too few tensors named transformer.resblocks")
    lost = () if projection else ("text_projection",)
    positions = "transformer.text_model.embeddings.position_ids"  # a constant in files converted from diffusers
    unused = (f"transformer.resblocks.{layers}.", "visual.", "logit_scale", "attn_mask", positions, *lost)
    used = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    width = size(tensors, "token_embedding.weight", 1)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    named = single_file_utils.convert_open_clip_checkpoint(model, used, prefix="")
    renamed = short_names(named)
    fused = sum(name.endswith((".in_proj_weight", ".in_proj_bias")) for name in used)
    if len(renamed) != len(used) + 2 * fused:
        raise ConfigError("unknown tensors in the text encoder: another architecture than OpenCLIP's")
    config = clip_config(renamed, layers, "gelu")
    if not projection:
        return Converted(config, renamed)
    return Converted(config | {"projection_dim": size(renamed, "text_projection.weight", 0)}, named)


def convert_image_encoder(tensors: Tensors) -> Converted:
    """Return config and tensors for transformers' CLIPVisionModel, from the tensors of OpenCLIP's ViT-H image encoder.

    The encoder's projection to text space is left out.
    """
    width, patch = (size(tensors, "conv1.weight", i) for i in (0, 2))
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    blocks = {name: tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    renamed = short_names(single_file_utils.convert_open_clip_checkpoint(model, blocks, prefix=""))
    renamed |= {new: tensors[old] for new, old in VISUAL.items() if old in tensors}
    config = {
        "hidden_size": width,
        "intermediate_size": size(renamed, "encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": count(renamed, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // VISUAL_HEAD_WIDTH),
        "image_size": patch * round((size(tensors, "positional_embedding", 0) - 1) ** 0.5),
        "patch_size": patch,
        "hidden_act": "gelu",
    }
    return Converted(config, renamed)


def convert_clip(tensors: Tensors) -> Converted:
    """Return config and tensors for transformers' CLIPTextModel, from those of Stable Diffusion 1's text encoder.

    `tensors` already have the names of transformers; this function removes their prefix "text_model.". Raises
    ConfigError if they are not those of a CLIP text encoder.
    """
    renamed = short_names(tensors)
    layers = count(renamed, r"encoder\.layers\.(\d+)\.")
    if layers == 0:
        raise ConfigError("not a CLIP text encoder: it has no tensors named encoder.layers")
    return Converted(clip_config(renamed, layers, "quick_gelu"), renamed)


def short_names(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of a CLIP model by their names in transformers 5, without the buffer position_ids.

    The prefix "text_model." or "vision_model." is removed.
    """
    renamed = {re.sub(r"^(text|vision)_model\.", "", name): tensor for name, tensor in tensors.items()}
    renamed.pop("embeddings.position_ids", None)
    return renamed


def clip_config(tensors: Tensors, layers: int, activation: str) -> Json:
    """Return the arguments of transformers' CLIPTextConfig for a text encoder, inferred from its `tensors`.

    It gets one head per 64 channels; start and end token are the last two tokens. `layers` is the number of layers,
    `activation` the function in their MLPs, such as "gelu".
    """
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
    # the integers in the first group of the regular expression `pattern`, which matches at the start of names
    matches = (re.match(pattern, name) for name in names)
    return {int(m[1]) for m in matches if m and len(m[1]) < 10}


def count(names: Iterable[str], pattern: str) -> int:
    """Count the layers, or other numbered parts, of a network by the numbers in its tensor names.

    `pattern` is a regular expression for the start of a name; its first group matches the number. Other names are
    ignored. Raises ConfigError if the numbers are not 0, 1, 2, ... without a gap.
    """
    found = indices(names, pattern)
    if found != set(range(len(found))):
        readable = pattern.replace("\\.", ".").replace(r"(\d+)", "N")
        raise ConfigError(f"another architecture: the tensors named {readable} are not numbered without a gap")
    return len(found)


def size(tensors: Tensors, name: str, dim: int) -> int:
    """Return the length of dimension `dim` of the tensor `name`. Raises ConfigError if it has no such dimension."""
    if name not in tensors:
        raise ConfigError(f"another architecture: there is no tensor {short(name)}")
    shape = tensors[name].shape
    if dim >= len(shape):
        raise ConfigError(f"another architecture: tensor {short(name)} has the shape {tuple(shape)}")
    return shape[dim]
