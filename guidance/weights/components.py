"""Load the networks of a latent prior from a diffusers folder or a single file of the ldm code base."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
)

from threedgen.config import ConfigError
from threedgen.config.errors import one_line, short
from threedgen.guidance.attention.image_tokens import IMAGE_TOKENS
from threedgen.guidance.attention.joined import unet_from_config
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.schedule import Prediction, Schedule
from threedgen.run.dtypes import cast_weights

from . import files, ldm, loading, single_file, tokens
from .files import Json
from .ldm import Converted
from .loading import COARSE, CONFIG, IMAGE_ENCODER, PARTS, SECOND

logger = logging.getLogger(__name__)


class Network(NamedTuple):
    """Kind of network that a diffusers folder may contain.

    Attributes:
        label: name of the network in messages.
        class_entry: key and value in config.json that identify its class, such as ("_class_name", "AutoencoderKL").
        build: function from the content of config.json to the network, with random weights.
    """

    label: str
    class_entry: tuple[str, str]
    build: Callable[[Json], nn.Module]


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
    IMAGE_ENCODER: Network(
        "image encoder", ("model_type", "clip_vision_model"), lambda c: CLIPVisionModel(CLIPVisionConfig.from_dict(c))
    ),
    COARSE: Network("coarse predictor", ("_class_name", "CoarsePredictor"), CoarsePredictor.from_config),
}
RANGES = {
    ("vae", "scaling_factor"): (1e-4, 1e4),
    ("unet", "sample_size"): (0, 512),
    ("unet", "downsample_padding"): (-1, 8),
    (COARSE, "size"): (0, 512),
}
"""Exclusive minimum and inclusive maximum of numbers in config.json, by sub-folder and key."""
EPS_RANGE, OTHER_RANGE = (0.0, 0.1), (-1e6, 1e6)
MIN_TIMESTEPS = 1000
ZERO_SNR = "ztsnr"
"""Name of an empty tensor in files of models that were trained with zero terminal SNR."""


class SecondText(NamedTuple):
    """SDXL's second text encoder `network`, a CLIP text model with a projection layer, and its tokenizer."""

    network: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase


class Components(NamedTuple):
    """Networks, tokenizers and noise schedule of a latent prior.

    Attributes:
        coarse: network that predicts latents from text and camera in one pass; the UNet takes the prediction as further
            input channels. None: the prior has no such network.
        second: second text encoder; None for all models except SDXL.
        image_encoder: CLIP's image encoder; None for all models except ImageDream.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    schedule: Schedule
    coarse: CoarsePredictor | None = None
    second: SecondText | None = None
    image_encoder: CLIPVisionModel | None = None


def load(
    weights: str,
    tokenizer: str | None = None,
    camera: bool = True,
    prediction: Prediction | None = None,
    required_parts: tuple[str, ...] = PARTS,
    half: torch.dtype | None = None,
) -> Components:
    """Load the frozen networks of a prior on the CPU. Raises ConfigError if a file is missing, damaged or unsuitable.

    Args:
        weights: name of weights that come with threedgen ("toybox-base" or "toybox-prior"), folder, single-file
            checkpoint or hub id.
        tokenizer: folder or hub id; None: the tokenizer of the weights, or CLIP's for a single file.
        camera: whether to raise ConfigError if the UNet lacks MVDream's camera branch.
        prediction: output of the UNet, "epsilon" or "v_prediction"; None: as the weights declare, else "epsilon" with a
            warning.
        required_parts: sub-folder names of the required networks. If "image_encoder" is among them, the weights must be
            ImageDream's; otherwise weights of ImageDream are an error.
        half: dtype of the linear and convolution layers of the UNet; None: float32.
    """
    path = loading.locate(weights, required_parts)
    folder = path.is_dir()
    found = (
        load_folder(path, tokenizer, required_parts, half) if folder else load_file(path, tokenizer, prediction, half)
    )
    if camera and found.unet.class_embedding is None:
        raise ConfigError(f"{short(weights, 300)} {loading.NO_CAMERA}", "weights")
    if (IMAGE_TOKENS in found.unet.config) != (IMAGE_ENCODER in required_parts):
        kind = "imagedream" if IMAGE_TOKENS in found.unet.config else "mvdream"
        raise ConfigError(f"{short(weights, 300)} are weights of another prior; choose prior.name={kind}", "weights")
    if IMAGE_ENCODER in required_parts and found.image_encoder is None:
        problem = f"{path} lacks CLIP's image encoder: it has no tensor named clip_model.model.visual..."
        raise ConfigError(f"{problem}; ashawkey/imagedream-ipmv-diffusers on the hub has it", "weights")
    if prediction is not None and prediction != found.schedule.prediction:
        logger.warning("prior.prediction replaces %s, the prediction type in %s", found.schedule.prediction, path)
        return found._replace(schedule=replace(found.schedule, prediction=prediction))
    return found


def load_folder(
    path: Path, tokenizer: str | None = None, required_parts: tuple[str, ...] = PARTS, half: torch.dtype | None = None
) -> Components:
    """Load networks, tokenizers and noise schedule of the diffusers folder `path`.

    `tokenizer` is a folder or hub id; None: the tokenizer in `path`. `required_parts` are the sub-folder names of the
    required networks. `half`: see `build_network`.
    """
    loading.check_folder(path, required_parts)
    files.check_sums(path)
    if tokenizer is None:
        words = tokens.read_tokenizer(path)
    else:
        activation = files.read_json(path / "text_encoder" / CONFIG).get("hidden_act")
        words = tokens.clip_tokenizer(tokenizer, open_clip=activation == "gelu")  # CLIP has "quick_gelu"
    schedule = read_schedule(path)
    networks = {
        part: build_network(part, *read_network(path / part), half)
        for part in loading.network_folders(path, required_parts)
    }
    if SECOND in networks:
        networks["second"] = SecondText(networks.pop(SECOND), tokens.read_tokenizer(path / "tokenizer_2"))
    return Components(tokenizer=words, schedule=schedule, **networks)


def read_schedule(path: Path) -> Schedule:
    """Read the noise schedule of a diffusers folder.

    Raises ConfigError if the schedule is unsupported or has fewer than 1000 timesteps.
    """
    try:
        schedule = Schedule.from_diffusers(files.read_json(path / "scheduler" / "scheduler_config.json"))
        if schedule.T < MIN_TIMESTEPS:
            raise ValueError(f"num_train_timesteps is {schedule.T}, less than {MIN_TIMESTEPS}")
        return schedule
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{path / 'scheduler'}: {one_line(error)}") from None


def load_file(
    path: Path, tokenizer: str | None = None, prediction: Prediction | None = None, half: torch.dtype | None = None
) -> Components:
    """Load networks, tokenizers and noise schedule from a single-file checkpoint of the latent-diffusion code base.

    `tokenizer` is a folder or hub id; None: CLIP's tokenizer. `prediction` is the output of the UNet, "epsilon" or
    "v_prediction", if neither the file nor its kind of model determines it; None: "epsilon" with a warning. `half`: see
    `build_network`.
    """
    found = single_file.convert_file(path, prediction)
    if prediction is None and found.prediction is None:
        hint = "If samples are noise, set prior.prediction=v"
        logger.warning(
            "%s does not declare whether it predicts noise (epsilon) or v; epsilon is assumed. %s", path, hint
        )
    schedule = Schedule.scaled_linear(prediction=found.prediction or prediction or "epsilon")
    if (prediction or schedule.prediction) == "v_prediction" and ZERO_SNR in files.read_header(path)[0]:
        schedule = schedule.with_zero_snr()
    networks = {part: build_network(part, *network, half) for part, network in found.networks.items()}
    if SECOND in networks:
        networks["second"] = SecondText(networks.pop(SECOND), tokens.clip_tokenizer(tokenizer, open_clip=True))
    return Components(tokenizer=tokens.clip_tokenizer(tokenizer, found.open_clip), schedule=schedule, **networks)


def read_network(folder: Path, check_class: bool = True) -> Converted:
    """Read config and tensors of a network from `folder`, a sub-folder such as "unet" of a diffusers folder.

    A UNet may have the tensor names of the latent-diffusion code base; those of the result are always diffusers'.
    `check_class`: whether to raise ConfigError if config.json describes another kind of network than `NETWORKS`.
    """
    tensors: dict[str, Tensor] = {}
    for file in loading.tensor_files(folder):
        tensors |= files.read_tensors(file)
    if "input_blocks.0.0.weight" in tensors:
        return ldm.convert_unet(tensors)
    config = files.read_json(folder / CONFIG)
    if check_class:
        expect(config, *NETWORKS[folder.name].class_entry, folder)
    if folder.name == "vae":
        tensors = {rename_vae_attention(name): tensor for name, tensor in tensors.items()}
    elif folder.name in ("text_encoder", IMAGE_ENCODER):
        tensors = ldm.short_names(tensors)
    tensors.pop("text_model.embeddings.position_ids", None)  # a constant in older files
    return Converted(config, tensors)


def expect(config: Mapping[str, object], key: str, value: str, part: Path) -> None:
    if config.get(key) != value:
        raise ConfigError(f"{part}: config.json describes a {str(config.get(key))[:60]!r}, not a {value}")


def rename_vae_attention(name: str) -> str:
    """Convert the pre-0.15 diffusers name of a tensor in a VAE's attention layers; return other names unchanged."""
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def build_network(part: str, config: Json, tensors: Mapping[str, Tensor], half: torch.dtype | None = None) -> Any:
    """Build the frozen network `part` ("unet", "vae", ...) from its config and tensors.

    `half` is the dtype of the UNet's linear and convolution layers, which are then not built in float32 first; None:
    float32. Other networks are float32.

    Raises:
        ConfigError: a number in the config is out of range, the config has more layers than there are tensors (building
            the network would take very long), or names, shapes or values of the tensors are wrong.
    """
    network = NETWORKS[part]
    for key, value in config.items():
        low, high = EPS_RANGE if key.endswith("eps") else RANGES.get((part, key), OTHER_RANGE)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not low < number <= high:
                raise ConfigError(f"the config of the {network.label} is damaged: {key} is {short(number)}")
    # a config with more layers than tensors would take very long to build
    for key in ("layers_per_block", "num_hidden_layers", "transformer_layers_per_block"):
        values = config.get(key)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int) and value > len(tensors):
                raise ConfigError(f"the config of the {network.label} does not belong to its weights: {key} is {value}")

    def build() -> nn.Module:
        built = network.build(config)
        if half is not None and part == "unet":
            cast_weights(built, half)
        return built

    return files.build_from_tensors(build, tensors, network.label)


def check_vocabulary(text_encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer has more tokens than the text encoder has embeddings."""
    known = text_encoder.config.vocab_size
    if (words := 1 + max(tokenizer.get_vocab().values(), default=0)) > known:
        raise ConfigError(f"the tokenizer has {words} words, the text encoder only {known}")
