"""Recognise the model of single-file checkpoints by tensor names, metadata and file name; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from threedgen.config import ConfigError

if TYPE_CHECKING:
    from threedgen.guidance.schedule import Prediction

SUPPORTED = "Stable Diffusion 1.x, 2.x and XL, MVDream and ImageDream are"
UNET = "model.diffusion_model.input_blocks."
FAMILIES = {
    r"edm_|.*\bedm_": "Playground 2.5 or another EDM model",
    r"conditioner\.embedders\.0\.model\.": "the refiner of SDXL",
    r"(model\.diffusion_model\.)?joint_blocks\.": "Stable Diffusion 3",
    r"(model\.diffusion_model\.)?(double_blocks|single_blocks|single_transformer_blocks|double_stream)": "FLUX",
    r"(transformer\.)?transformer_blocks\.\d+\.attn\.add_": "Stable Diffusion 3 or FLUX",
    r"(model\.diffusion_model\.)?(blocks|layers|transformer_blocks|net)\.": "a diffusion transformer",
    r"control_model\.|controlnet_cond_embedding\.|input_hint_block\.": "a ControlNet",
    r"lora_|.*[._](lora_|hada_|lokr_)|base_model\.model\.": "a LoRA, which belongs in prior.loras,",
    r"emb_params|string_to_param|clip_g$": "a textual inversion, which belongs in prior.embeddings,",
    r"(down|up|mid)_block": "one network in diffusers format, without its folder,",
    r"(first_stage_model\.)?(encoder|decoder)\.": "a VAE",
}
"""Kind of unsupported weights, for messages, by a regular expression that matches the start of a tensor name."""
V_NAME = re.compile(r"v[-_]?pred")
SD2_V_NAME = re.compile(rf"768[-_]?v|v?2[-_.]?[01]?[-_]768|{V_NAME.pattern}")
EPSILON_NAME = re.compile(r"v?2[-_.]?[01]?[-_]512|512[-_](base|inpainting|depth)|(^|[-_])eps|xl[-_]base")


class Traits(NamedTuple):
    """Prediction type and image size of a checkpoint, as far as its file declares them.

    Attributes:
        prediction: quantity that the UNet predicts, "epsilon" (noise) or "v_prediction" (velocity); None: not declared.
        image_size: side in pixels of the square images of the model; None: not declared.
    """

    prediction: Prediction | None
    image_size: int | None


def check_family(path: Path, names: Iterable[str]) -> None:
    """Raise ConfigError unless `names`, the tensor names in the file `path`, belong to a supported diffusion model.

    Supported are Stable Diffusion 1.x, 2.x and XL, MVDream and ImageDream. The message names the kind of weights found,
    such as a LoRA.
    """
    names = list(names)
    unet = any(name.startswith(UNET) for name in names)
    for pattern, family in list(FAMILIES.items())[: 2 if unet else None]:
        if any(re.match(pattern, name) for name in names):
            raise ConfigError(f"{path} holds {family} and is not supported as a prior; {SUPPORTED}", "weights")
    if not unet:
        raise ConfigError(f"{path} has no tensor named {UNET}...: it is no checkpoint of a prior; {SUPPORTED}")


def traits(path: Path, names: Iterable[str], metadata: Mapping[str, str], sd2: bool) -> Traits:
    """Return prediction type and image size of a checkpoint, each None if it is not found.

    The prediction type comes from the first source that shows it: a tensor named "v_pred", the metadata, the file name.
    The image size, the side of the square training images in pixels, comes from the metadata only.

    Args:
        path: checkpoint; only its name is used.
        names: names of its tensors.
        metadata: metadata in the header of a safetensors file.
        sd2: whether the model is a Stable Diffusion 2 that may predict either. Only then does 768 in the file name
            show a v-prediction; other models are named so for their image size.
    """
    found: Prediction | None = None
    declared = (metadata.get(f"modelspec.{key}", "").lower() for key in ("prediction_type", "architecture"))
    sources = [("v_pred" if "v_pred" in names else "", V_NAME), *((text, SD2_V_NAME) for text in declared)]
    sources.append((path.stem.lower(), SD2_V_NAME if sd2 else V_NAME))
    for text, v_name in sources:
        if found is None and (v_name.search(text) or text == "v"):
            found = "v_prediction"
        elif found is None and EPSILON_NAME.search(text):
            found = "epsilon"
    size = max(map(int, re.findall(r"\d{1,5}", metadata.get("modelspec.resolution", ""))), default=0)
    return Traits(found, size if 64 <= size <= 2048 and size % 64 == 0 else None)
