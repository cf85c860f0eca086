"""The networks of a prior from files, and back: diffusers folders, and single files of the ldm code base."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import DDIMScheduler, __version__
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from threedgen.config import ConfigError
from threedgen.config.errors import short
from threedgen.guidance import sdxl
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.multiview.joined import unet_from_config
from threedgen.guidance.options import COARSE, SECOND
from threedgen.guidance.schedule import Schedule
from threedgen.run.disk import write_json

from . import files, ldm, loading, tokens

if TYPE_CHECKING:
    from threedgen.guidance.priors.latent_diffusion import LatentDiffusion


class Network(NamedTuple):
    """How a part of a prior is called, the entry of its config that names its class, and how it is built from that."""

    label: str
    named: tuple[str, str]
    build: Callable[[dict[str, Any]], nn.Module]


NETWORKS = {
    "unet": Network("UNet", ("_class_name", "UNet2DConditionModel"), unet_from_config),
    "vae": Network("VAE", ("_class_name", "AutoencoderKL"), AutoencoderKL.from_config),
    "text_encoder": Network(
        "text encoder", ("model_type", "clip_text_model"), lambda c: CLIPTextModel(CLIPTextConfig.from_dict(c))
    ),
    SECOND: Network(
        "second text encoder",
        ("model_type", "clip_text_model"),
        lambda c: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(c)),
    ),
    COARSE: Network("coarse predictor", ("_class_name", "CoarsePredictor"), CoarsePredictor.from_config),
}


BOUNDS = {
    ("vae", "scaling_factor"): (1e-4, 1e4),
    ("unet", "sample_size"): (0, 512),
    ("unet", "downsample_padding"): (-1, 8),
    ("coarse", "size"): (0, 512),
}
"""Above and at most; what is outside would draw nothing, or more than there is memory."""
LARGEST = 1e6
"""Of any other number in a config."""
LEAST_STEPS = 1000


class SecondText(NamedTuple):
    """SDXL's other text encoder, and its tokenizer."""

    network: CLIPTextModelWithProjection
    tokenizer: Any


class Components(NamedTuple):
    """What a prior consists of."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Any
    schedule: Schedule
    coarse: CoarsePredictor | None = None
    second: SecondText | None = None


def load(weights: str, tokenizer: str | None = None, camera: bool = True) -> Components:
    """Frozen networks on the CPU from anything that ``loading.locate`` finds. Raises ConfigError."""
    path = loading.locate(weights)
    found = load_folder(path, tokenizer) if path.is_dir() else load_file(path, tokenizer)
    if camera and found.unet.class_embedding is None:
        raise ConfigError(f"{weights!r} has no camera branch, so it is not a multi-view model but a 2D one", "weights")
    return found


def load_folder(path: Path, tokenizer: str | None = None) -> Components:
    """A folder in diffusers format."""
    loading.check_folder(path)
    files.check_sums(path)
    if tokenizer is None:
        words = tokens.read_tokenizer(path / "tokenizer")
    else:
        words = tokens.clip_tokenizer(tokenizer, open_clip=False)
    schedule = read_schedule(path)
    unet, vae, text = (read_network(path, part) for part in loading.PARTS)
    further = loading.parts(path, ())
    coarse = read_network(path, COARSE) if COARSE in further else None
    second = read_second(path) if SECOND in further else None
    return Components(unet, vae, text, words, schedule, coarse, second)


def read_second(path: Path) -> SecondText:
    """SDXL's other text encoder in a diffusers folder. Raises ConfigError."""
    config, tensors = read_part(path / SECOND)
    expect(config, *NETWORKS[SECOND].named, path / SECOND)
    tensors.pop("text_model.embeddings.position_ids", None)  # a constant of older files
    return SecondText(make(SECOND, config, tensors), tokens.read_tokenizer(path / "tokenizer_2"))


def read_schedule(path: Path) -> Schedule:
    """The noise schedule of a diffusers folder, of at least as many timesteps as options of steps may say."""
    try:
        schedule = Schedule.from_diffusers(files.read_json(path / "scheduler" / "scheduler_config.json"))
        if schedule.T < LEAST_STEPS:
            raise ValueError(f"num_train_timesteps is {schedule.T}, less than {LEAST_STEPS}")
        return schedule
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        reason = str(error).split("\n")[0][:120]
        raise ConfigError(f"{path / 'scheduler'}: {reason}") from None


def load_file(path: Path, tokenizer: str | None = None) -> Components:
    """A single-file checkpoint of the ldm code base, such as MVDream's own two."""
    parts = ldm.split_checkpoint(files.read_tensors(path))
    text = "open_clip" if "open_clip" in parts else "clip"
    for part in ("unet", "vae", text):
        if part not in parts:
            raise ConfigError(f"{path} is no checkpoint of MVDream's kind: it has no tensor named {ldm.PARTS[part]}...")
    convert = ldm.convert_open_clip if text == "open_clip" else ldm.convert_clip
    unet = make("unet", *ldm.convert_unet(parts["unet"]))
    vae = make("vae", *ldm.convert_vae(parts["vae"]))
    encoder = make("text_encoder", *convert(parts[text]))
    words = tokens.clip_tokenizer(tokenizer, open_clip=text == "open_clip")
    return Components(unet, vae, encoder, words, Schedule.scaled_linear())


def read_network(path: Path, part: str) -> Any:
    """The network of one part of a diffusers folder; a UNet that keeps ldm's network and names is converted."""
    config, tensors = read_part(path / part)
    if "input_blocks.0.0.weight" in tensors:
        return make(part, *ldm.convert_unet(tensors))
    expect(config, *NETWORKS[part].named, path / part)
    if part == "vae":
        tensors = {old_vae_name(name): tensor for name, tensor in tensors.items()}
    return make(part, config, ldm.short_names(tensors) if part == "text_encoder" else tensors)


def read_part(part: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors (of all shards) of one part of a diffusers folder."""
    tensors: dict[str, Tensor] = {}
    for file in loading.tensor_files(part):
        tensors |= files.read_tensors(file)
    return files.read_json(part / "config.json"), tensors


def expect(config: Mapping[str, Any], key: str, value: str, part: Path) -> None:
    if config.get(key) != value:
        raise ConfigError(f"{part}: config.json describes a {str(config.get(key))[:60]!r}, not a {value}")


def old_vae_name(name: str) -> str:
    """Folders written by diffusers before 0.15 name the layers of the VAE's attention as here on the left."""
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def make(part: str, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The network of a ``part``, frozen. Refuses a config with more layers than tensors, which would take for ever."""
    network = NETWORKS[part]
    for key, value in config.items():
        low, high = (0.0, 0.1) if key.endswith("eps") else BOUNDS.get((part, key), (-LARGEST, LARGEST))
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not low < number <= high:
                raise ConfigError(f"the config of the {network.label} is damaged: {key} is {short(number)}")
    for key in ("layers_per_block", "num_hidden_layers", "transformer_layers_per_block"):
        values = config.get(key)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int) and value > len(tensors):
                raise ConfigError(f"the config of the {network.label} does not belong to its weights: {key} is {value}")
    return files.fill(lambda: network.build(config), tensors, network.label)


def check_together(
    unet: Any,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    coarse: Any = None,
    extra: int = 0,
    second: SecondText | None = None,
) -> None:
    """Raises ConfigError unless the parts fit each other. extra: channels beside the latents that the UNet takes."""
    features, latents = text_encoder.config.hidden_size, vae.config.latent_channels
    if sdxl.has_added_conditioning(unet) != (second is not None):
        raise ConfigError(
            "the parts of the prior do not fit: a UNet of SDXL and two text encoders belong together, and here is one "
            "without the other"
        )
    given, per_token = "channels of the VAE's latents", "features per token of the text encoder"
    pairs = [
        (per_token, features, "text features that the UNet takes", unet.config.cross_attention_dim),
        (given, latents, "channels that the UNet gives", unet.config.out_channels),
    ]
    if coarse is None:
        pairs += [(given, latents, "channels that the UNet takes", unet.config.in_channels - extra)]
    else:
        both = latents + coarse.config.latent_channels
        pairs += [
            (f"{given} and the coarse predictor", both, "channels that the UNet takes", unet.config.in_channels),
            (per_token, features, "text features that the coarse predictor takes", coarse.config.text_width),
            ("latents per side of the UNet", unet.config.sample_size, "of the coarse predictor", coarse.config.size),
        ]
    if second is not None:
        both = features + second.network.config.hidden_size
        pairs[0] = ("features per token of the two text encoders", both, *pairs[0][2:])
        width, taken = second.network.config.projection_dim, sdxl.pooled_width(unet)
        pairs += [("features in the second text encoder's summary", width, "that the UNet takes", taken)]
    for left, a, right, b in pairs:
        if a != b:
            raise ConfigError(f"the parts of the prior do not fit: {a} {left}, {b} {right}")
    encoders = [(text_encoder, tokenizer), *([] if second is None else [second])]
    for encoder, splitter in encoders:
        known = encoder.config.vocab_size
        if (words := 1 + max(splitter.get_vocab().values(), default=0)) > known:
            raise ConfigError(f"the tokenizer has {words} words, the text encoder only {known}")


def save(prior: LatentDiffusion, folder: Path) -> None:
    """Writes a diffusers folder with float16 tensors and SHA256SUMS, complete or not at all.

    Raises ConfigError if ``folder`` holds something else, a weight does not fit into float16, or it is SDXL.
    """
    if prior.second is not None:
        raise ConfigError("weights of SDXL are read here and not written; copy the folder that they came from")
    with files.whole_folder(folder, "model_index.json") as part:
        network: Any
        for name, network in prior.networks.items():
            if name != "text_encoder":
                told = json.loads(network.to_json_string())
                told.pop("_name_or_path", None)  # from which folder it was read is nobody's business
                write_json(part / name / "config.json", told)
                files.save_tensors(network, part / name / "diffusion_pytorch_model.safetensors")
        prior.text_encoder.config.save_pretrained(part / "text_encoder")
        prior.tokenizer.save_pretrained(part / "tokenizer")
        # The prefix is what transformers 4 and the folders on the hub have; transformers 5 reads both.
        files.save_tensors(prior.text_encoder, part / "text_encoder" / "model.safetensors", "text_model.")
        scheduler(prior.schedule).save_config(part / "scheduler")
        write_json(part / "model_index.json", model_index(prior))


def scheduler(schedule: Schedule) -> Any:
    """The DDIM scheduler of diffusers that samples like ours; unusual betas are listed one by one."""
    known = {
        "scaled_linear": (0.00085, 0.012, Schedule.scaled_linear(T=schedule.T)),
        "linear": (0.0001, 0.02, Schedule.linear(T=schedule.T)),
    }
    same = [name for name, found in known.items() if torch.equal(found[2].betas, schedule.betas.cpu())]
    name = same[0] if same else "scaled_linear"
    beta_start, beta_end, _ = known[name]
    return DDIMScheduler(  # by name: what is given by place, `from_config` of another class takes for a default
        num_train_timesteps=schedule.T,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=name,
        trained_betas=None if same else schedule.betas.tolist(),
        prediction_type=schedule.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def model_index(prior: LatentDiffusion) -> dict[str, Any]:
    """Lets diffusers' own pipelines find the parts, and ``MVDreamPipeline`` the coarse predictor."""
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
