"""Fuse LoRAs into the networks of a latent prior, and add the words of textual inversions to its vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from tokenizers import AddedToken
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import errors_default_to_key, errors_name_key, key_prefix, one_line, printable, short
from threedgen.config.plain_file import parse_json
from threedgen.run.torch_file import leaves, read_safetensors, read_torch, require_finite

from . import files, loading
from .addition_files import FIRST_KEYS, embedding_word, weight_file
from .loading import PEFT_CONFIG, PEFT_STEM
from .subject_weights import add_word, check_identifier, token_embedding
from .tokens import vector_tokens

if TYPE_CHECKING:
    from threedgen.guidance.options import EmbeddingFile, LoraFile
    from threedgen.guidance.priors.latent_diffusion import LatentDiffusion

Tensors = Mapping[str, Tensor]
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
"""Base model by the width of its text embeddings."""
NAMED_BASES = {
    r"double_blocks|single_transformer_blocks|\bflux": "FLUX",
    r"joint_blocks|stable-diffusion-3|\bsd3": "Stable Diffusion 3",
    r"lora_te2_|text_encoder_2\.|\bsdxl|stable-diffusion-xl": BASES[2048],
    r"\bsd_v2|stable-diffusion-v2": BASES[1024],
    r"\bsd_v1|stable-diffusion-v1": BASES[768],
}
"""Base model of a LoRA, by a regular expression that matches somewhere in its tensor names or metadata."""
OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude": "DoRA",
    "lora_mid": "CP LoCon",
    r"\.diff$": "LyCORIS full",
    "oft_": "OFT",
    r"\.on_input$": "IA3",
}
"""Kinds of weight changes that are not supported, by a regular expression that matches in their tensor names."""
SECOND_KEYS = ("clip_g", "text_encoders_1")
"""Tensor names, in textual inversions of SDXL, of the vectors for the second text encoder."""


def add(prior: LatentDiffusion, loras: Sequence[LoraFile], embeddings: Sequence[EmbeddingFile]) -> None:
    """Fuse LoRAs and add textual inversions to `prior`, in place. Raises ConfigError if a file does not fit."""
    for n, lora in enumerate(loras):
        with key_prefix(f"loras.{n}"), errors_default_to_key("file"):
            fuse_lora(prior, lora)
    for n, embedding in enumerate(embeddings):
        with key_prefix(f"embeddings.{n}"), errors_default_to_key("file"):
            add_embedding(prior, embedding)


def fuse_lora(prior: LatentDiffusion, lora: LoraFile) -> None:
    """Add a LoRA, multiplied with `lora.scale`, to the weights of UNet and text encoders, in place.

    The file may have any format that diffusers reads. Raises ConfigError if the file is missing, does not fit the
    networks, or has another kind of weight changes, such as LoHa.
    """
    path = weight_file(lora.file)
    content, metadata = files.read_tensors(path), files.read_header(path)[1]
    content = {name: t.float() if t.is_floating_point() else t for name, t in content.items()}
    tensors = {name: t for name, t in content.items() if "lora" in name or name.endswith(".alpha")}
    for part, kind in OTHER_KINDS.items():
        if any(re.search(part, name) for name in content):
            raise ConfigError(f"{path} is a {kind} file, which is not supported; take a LoRA")
    if not tensors:
        raise ConfigError(f"{path} is no LoRA: no tensor has lora in its name (first {short(next(iter(content)))})")
    files.warn_unused([name for name in content if name not in tensors], "of a LoRA")
    require_finite(tensors, str(path))
    pipe = networks_of(prior)
    try:
        state = to_peft_tensors(pipe, tensors, peft_options(path, metadata))
        for prefix in {name.partition(".")[0] for name in state}:
            if prefix == "unet":
                pipe.load_lora_into_unet(state, None, pipe.unet)
            else:
                pipe.load_lora_into_text_encoder(state, None, pipe.components[prefix], prefix=prefix)
    except Exception as error:  # a ValueError of `to_peft_tensors`; diffusers raises anything for other tensors
        problem = str(error) if isinstance(error, ValueError) else one_line(error)
        base, ours = base_model_name(tensors, metadata), named_base(pipe.unet.config["cross_attention_dim"])
        problem = f"{path}, a LoRA of {base}, does not fit this prior, {ours}: {printable(problem)}"
        if any(name.startswith("diffusion_model.") for name in tensors):
            problem += ". Its names are ComfyUI's, which are not supported: convert it to kohya's"
        raise ConfigError(problem) from error
    pipe.fuse_lora(components=list(pipe.components), lora_scale=lora.scale, safe_fusing=True)
    pipe.unload_lora_weights()


def networks_of(prior: LatentDiffusion) -> Any:
    """Return an object with a prior's UNet and text encoders and the methods of diffusers that load and fuse LoRAs."""
    mixin = StableDiffusionLoraLoaderMixin if prior.second is None else StableDiffusionXLLoraLoaderMixin
    networks = {"unet": prior.unet, "text_encoder": prior.text_encoder}
    if prior.second is not None:
        networks[loading.SECOND] = prior.second.network
    return type("Networks", (mixin,), {"components": networks, **networks})()


def peft_options(path: Path, metadata: Mapping[str, str]) -> files.Json:
    """Return the options of a LoRA that peft wrote, such as {"unet.lora_alpha": 8}; {} for other LoRAs.

    `path` is the LoRA's file, `metadata` its metadata. If the file is named adapter_model.* and its folder contains
    adapter_config.json, the options come from adapter_config.json, else from `metadata`. Options that name no network
    are those of the UNet.
    """
    config = path.parent / PEFT_CONFIG
    if path.stem == PEFT_STEM and config.is_file():
        found = files.read_json(config)
    else:
        found = parse_json(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    options = found if isinstance(found, dict) else {}
    return {name if "." in name else f"unet.{name}": value for name, value in options.items()}


def to_peft_tensors(pipe: Any, tensors: Tensors, options: files.Json) -> dict[str, Tensor]:
    """Return the tensors of a LoRA by peft's names, such as "unet.LAYER.lora_A.weight".

    The matrices lora_B are multiplied with the LoRA's alpha / rank (`lora_factor`).

    Args:
        pipe: UNet and text encoders of the prior, result of `networks_of`. Tensors for other networks are dropped, with
            a warning.
        tensors: content of the LoRA's file.
        options: options of a LoRA that peft wrote, such as {"unet.lora_alpha": 8} (`peft_options`); {} for others.

    Raises:
        ValueError: no tensor belongs to a layer of the networks, or the shape of a tensor does not fit its layer.
    """
    plain = {re.sub(r"base_model\.model\.|(?<=lora_[AB])\.default", "", name): t for name, t in tensors.items()}
    own_alphas = dict[str, Tensor]()
    if not any(name.startswith("lora_") for name in plain):  # not kohya's names
        own_alphas = {name: tensor for name, tensor in plain.items() if name.endswith(".alpha")}
        sides = {"down": "A", "up": "B"}
        rename = partial(re.sub, r"\.lora[._](down|up)\.", lambda m: f".lora_{sides[m[1]]}.")
        plain = {rename(name): tensor for name, tensor in plain.items() if name not in own_alphas}
    unet = re.compile(r"down_blocks|mid_block|up_blocks|conv_|time_|add_emb")
    plain, own_alphas = (
        {f"unet.{name}" if unet.match(name) else name: t for name, t in named.items()} for named in (plain, own_alphas)
    )
    state, alphas = pipe.lora_state_dict(plain, unet_config=pipe.unet.config)
    alphas = (alphas or {}) | own_alphas
    result, used = dict[str, Tensor](), set[str]()
    for prefix, network in pipe.components.items():
        modules = dict(network.named_modules())
        names = peft_names((name.removeprefix(f"{prefix}.") for name in state if name.startswith(f"{prefix}.")), prefix)
        for name, old in names.items():
            layer, _, side = name.partition(".lora_")
            module = modules.get(layer) or modules.get(layer.removeprefix("text_model."))
            weight, tensor, down = getattr(module, "weight", None), state[f"{prefix}.{old}"], side.startswith("A")
            if weight is None:
                continue
            if tensor.ndim != weight.ndim or tensor.shape[down] != weight.shape[down]:
                raise ValueError(f"{prefix}.{old} has the shape {tuple(tensor.shape)}, its layer {tuple(weight.shape)}")
            if not down:
                keys = (f"{prefix}.{names[f'{layer}.lora_A.weight']}.alpha", f"{prefix}.{layer}.alpha")
                alpha = next((alphas[key] for key in keys if key in alphas), None)
                tensor = tensor * lora_factor(layer, tensor.shape[1], alpha, options, prefix)
            result[f"{prefix}.{name}"] = tensor
            used.add(f"{prefix}.{old}")
    if not result:
        raise ValueError(f"no layer has the name of {short(next(iter(tensors)))}")
    files.warn_unused([name for name in state if name not in used], "of these networks")
    return result


def peft_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    # maps tensor names as peft writes them to the names in the file, for one network ("unet", "text_encoder")
    own = {name: name for name in names}  # the conversions keep names that are peft's already
    if prefix == "unet":
        return convert_unet_state_dict_to_peft(own)
    return convert_state_dict_to_peft(own, StateDictType.DIFFUSERS_OLD)  # contains the newer names


def lora_factor(layer: str, rank: int, alpha: float | None, options: files.Json, prefix: str) -> float:
    """Return the factor of the product of a LoRA's two matrices in one layer.

    The first case that applies:

    - `alpha` is not None: alpha / rank.
    - `options` has the key "PREFIX.lora_alpha", where PREFIX is `prefix`: alpha / rank, or alpha / sqrt(rank) if
      "PREFIX.use_rslora" is true. Alpha is the value of that key, but "PREFIX.alpha_pattern" may map ends of layer
      names to other values.
    - Otherwise: 1.0.

    Args:
        layer: name of the layer in its network.
        rank: rank of the matrices.
        alpha: alpha of the layer in the LoRA's file (kohya); None: the file has none.
        options: options of a LoRA that peft wrote, such as {"unet.lora_alpha": 8} (`peft_options`); {} for others.
        prefix: name of the network, such as "unet".
    """
    if alpha is not None or f"{prefix}.lora_alpha" not in options:
        return 1.0 if alpha is None else float(alpha) / rank
    pattern = options.get(f"{prefix}.alpha_pattern") or {}
    alpha = float(next((pattern[end] for end in pattern if layer.endswith(end)), options[f"{prefix}.lora_alpha"]))
    return alpha / (sqrt(rank) if options.get(f"{prefix}.use_rslora") else rank)


def base_model_name(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """Return the name of the base model of a LoRA, such as "SDXL", for messages; "an unknown model" if none is found.

    The base model follows from the width of its text embeddings, else from the LoRA's tensor names and metadata.
    """
    widths = [t.shape[1] for name, t in tensors.items() if re.search(r"attn2.to_k.*(down|lora_A)", name) and t.ndim > 1]
    if widths and widths[0] in BASES:
        return BASES[widths[0]]
    words = (metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture"))
    text = " ".join([*words, *tensors])
    found = (base for pattern, base in NAMED_BASES.items() if re.search(pattern, text))
    return next(found, named_base(widths[0]) if widths else "an unknown model")


def named_base(width: int) -> str:
    return BASES.get(width, f"a model with text of {width} features")


def add_embedding(prior: LatentDiffusion, embedding: EmbeddingFile) -> None:
    """Add the word of a textual inversion to tokenizers and text encoders of `prior`, in place, one token per vector.

    Raises ConfigError if the file is missing or belongs to another base model, or the word is in the vocabulary or
    would be mistaken for a further vector of another word.
    """
    path = weight_file(embedding.file)
    name, (first, second) = read_embedding(path)
    token = embedding.token or name
    encoders = [(prior.tokenizer, prior.text_encoder, first)]
    if prior.second is not None:
        encoders.append((prior.second.tokenizer, prior.second.network, second))
    widths = [token_embedding(network).weight.shape[1] for _, network, _ in encoders]
    found = [0 if rows is None else rows.shape[1] for rows in (first, second)]
    if found[: len(widths)] != widths or (second is not None) != (len(widths) == 2):
        its = BASES[2048] if second is not None else named_base(max(found))
        if len(widths) == 2 and found == [widths[0], 0]:  # diffusers' training script for SDXL also writes such files
            its += f", or of SDXL but without {SECOND_KEYS[0]}, the vectors for the second text encoder,"
        ours = named_base(prior.unet.config["cross_attention_dim"])
        raise ConfigError(f"{path} is a textual inversion of {its} and does not fit {ours}, this prior")
    with errors_name_key("token"):
        check_identifier(prior.tokenizer, token)
        added = prior.tokenizer.get_added_vocab()
        n = max(len(rows) for rows in (first, second) if rows is not None)
        taken = [f"{token}_{number}" in added for number in range(1, n + 1)]
        if any(taken) or token in [f"{word}_{len(vector_tokens(added, word))}" for word in added]:
            problem = "could be a vector of another word, whose vectors are WORD, WORD_1, ...; choose another word"
            raise ConfigError(problem, "token", token)
    for tokenizer, network, rows in encoders:
        require_finite({path.name: rows}, "the vectors of the textual inversion")
        for number, row in enumerate(rows if rows is not None else ()):
            word = AddedToken(f"{token}_{number}" if number else token, single_word=True)
            add_word(tokenizer, network, word, row.float())
        # SDXL's config says 2: the pooled text would be that of the largest token number, now that of the added word
        getattr(network, "text_model", network).eos_token_id = tokenizer.eos_token_id
    prior.embedded_words += (token,)


def read_embedding(path: Path) -> tuple[str, tuple[Tensor | None, Tensor | None]]:
    """Return the word of a textual inversion and two tensors (n, D): its n vectors for each text encoder.

    The word is the key of the tensor (diffusers), else the file name without suffix (AUTOMATIC1111). Only SDXL has a
    second text encoder; a missing tensor is None. Raises ConfigError if the file has no vectors of a word.
    """
    table: Any = (
        read_safetensors(path) if files.weight_format(path) == "safetensors" else read_torch(path, skip_objects=True)
    )
    table = table if isinstance(table, dict) else {}
    name = embedding_word(path)
    if "string_to_param" in table:
        table = {"emb_params": next((t for t in leaves(table["string_to_param"]) if isinstance(t, Tensor)), None)}
    pairs = [next((table[key] for key in keys if key in table), None) for keys in (FIRST_KEYS, SECOND_KEYS)]
    if pairs == [None, None] and len(table) == 1:
        key, pairs[0] = next(iter(table.items()))
        name = name if key == "emb_params" else str(key)  # of a torch file
    vectors = [rows[None] if isinstance(rows, Tensor) and rows.ndim == 1 else rows for rows in pairs]
    if not any(isinstance(rows, Tensor) for rows in vectors) or any(
        rows is not None and (not isinstance(rows, Tensor) or rows.ndim != 2 or not rows.is_floating_point())
        for rows in vectors
    ):
        raise ConfigError(f"{path} is no textual inversion: it holds no vectors of a word")
    return name, (vectors[0], vectors[1])
