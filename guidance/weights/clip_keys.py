"""Text encoders of single-file checkpoints -> transformers' CLIPTextModel.

Stable Diffusion 2 (and MVDream's sd-v2.1) carries an OpenCLIP tower of which the last block is not used;
Stable Diffusion 1 one already under transformers' names. ConfigError when the tensors are of another form.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from threedgen.config import ConfigError

from .ldm_keys import Converted, Prefixes, Tensors, count, nested, rename, size

RESBLOCK = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
]


def convert_open_clip(tensors: Tensors, heads: int | None = None, drop_last: bool = True) -> Converted:
    """OpenCLIP's text tower -> CLIPTextModel; ``drop_last`` leaves out its last block (Stable Diffusion 2).

    Fused query, key and value matrices (3 C, C) are split; ``heads`` defaults to one for each 64 channels.
    """
    layers = count(tensors, r"transformer\.resblocks\.(\d+)\.") - drop_last
    if layers < 1:
        raise ConfigError("not an OpenCLIP text encoder: it has too few tensors named transformer.resblocks")
    dropped = (f"transformer.resblocks.{layers}.", "visual.")
    unused = {"text_projection", "logit_scale", "attn_mask"}
    pairs: Prefixes = [("positional_embedding", "embeddings.position_embedding.weight")]
    pairs += [("token_embedding", "embeddings.token_embedding"), ("ln_final", "final_layer_norm")]
    plain, split = {}, {}
    for i in range(layers):
        pairs += nested(f"transformer.resblocks.{i}", f"encoder.layers.{i}", RESBLOCK)
    for name, tensor in tensors.items():
        if name.startswith(dropped) or name in unused:
            continue
        if fused := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[f"encoder.layers.{fused[1]}.self_attn.{letter}_proj.{fused[2]}"] = part
        else:
            plain[name] = tensor
    renamed = rename(plain, pairs, "text encoder")
    return Converted(clip_config(renamed, layers, heads, "gelu"), renamed | split)


def convert_clip(tensors: Tensors, heads: int | None = None) -> Converted:
    """A text encoder already under the names of transformers (Stable Diffusion 1) -> CLIPTextModel."""
    short = short_names(tensors)
    layers = count(short, r"encoder\.layers\.(\d+)\.")
    if layers == 0:
        raise ConfigError("not a CLIP text encoder: it has no tensors named encoder.layers")
    return Converted(clip_config(short, layers, heads, "quick_gelu"), short)


def short_names(tensors: Tensors) -> dict[str, Tensor]:
    """Names as transformers 5 has them: no prefix "text_model." and no constant buffer of positions."""
    short = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    short.pop("embeddings.position_ids", None)
    return short


def clip_config(tensors: Tensors, layers: int, heads: int | None, activation: str) -> dict[str, Any]:
    """Arguments of CLIPTextConfig; start and end tokens are the last two of the vocabulary, as in CLIP."""
    vocab, width = (size(tensors, "embeddings.token_embedding.weight", i) for i in (0, 1))
    heads = heads or max(1, width // 64)
    if width % heads:
        raise ConfigError(f"{width} channels of the text encoder cannot be split into {heads} heads")
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": size(tensors, "encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": size(tensors, "embeddings.position_embedding.weight", 0),
        "hidden_act": activation,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": 0,
    }
