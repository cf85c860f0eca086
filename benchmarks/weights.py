"""Compare LoRAs and single-file weights of Stable Diffusion 1.5, 2.1 and XL, as threedgen loads them, with diffusers.

The networks are small and random, with the structure and the tensor names of the released networks.
"""

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from tests.support.tiny_pipelines import KINDS, lora, pipelines, prior_of, released, single_file, states
from threedgen.guidance.options import LoraFile
from threedgen.guidance.priors.from_options import build
from threedgen.guidance.priors.options import StableDiffusionConfig
from threedgen.guidance.weights import additions

from .table import Row, Table

PROMPT, SCALE = "a red car", 0.8
FORMS = ("kohya", "kohya with convolutions", "diffusers")


def table() -> Table:
    """Return a row with the largest differences for each fused LoRA and each loaded single file."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [*_loras(Path(folder)), *_single_files(Path(folder))]
    title = "Largest differences between our weights, or the noise that our UNet predicts, and those of diffusers"
    notes = [
        f"LoRAs: fuse_lora with scale {SCALE}; change: largest change of a weight. Single files: from_single_file of "
        "the UNet, and the text encoders of the pipeline that the file was made from."
    ]
    return Table(title, sorted(rows, key=lambda row: KINDS.index(str(row["base"]))), notes)


def _loras(folder: Path) -> Iterator[Row]:
    for kind, pipe in pipelines(folder / "sdxl").items():
        for form in FORMS:
            tensors, file = lora(pipe, form), folder / "lora.safetensors"
            save_file(tensors, file, {"ss_network_dim": "4"})
            prior, theirs = prior_of(pipe), deepcopy(pipe)
            additions.add(prior, [LoraFile(file=str(file), scale=SCALE)], [])
            theirs.load_lora_weights(tensors)
            theirs.fuse_lora(lora_scale=SCALE)
            theirs.unload_lora_weights()
            yield _row(kind, f"LoRA, {form}", prior.networks, theirs, states(pipe.components))


def _single_files(folder: Path) -> Iterator[Row]:
    for kind, pipe in released(folder / "sdxl-released").items():
        file, source = folder / kind / f"{kind}.safetensors", folder / kind / "pipeline"
        pipe.save_pretrained(source)
        save_file({name: tensor.clone() for name, tensor in single_file(kind, pipe).items()}, file)
        pipe.tokenizer.save_pretrained(folder / kind / "clip")
        options: Any = {"tokenizer": str(folder / kind / "clip"), "dtype": "fp32", "prediction": "epsilon"}
        prior = build(StableDiffusionConfig(weights=str(file), **options))
        where: Any = {"config": str(source), "subfolder": "unet", "local_files_only": True}
        pipe.unet = UNet2DConditionModel.from_single_file(str(file), **where)
        yield _row(kind, "single file", prior.networks, pipe, None)


def _row(kind: str, file: str, networks: Any, pipe: Any, plain: dict[str, Tensor] | None) -> Row:
    own, expected = states(networks), states(pipe.components)
    common = own.keys() & expected.keys() if plain is None else own.keys()
    changed = [name for name in own if not torch.equal(own[name], plain[name])] if plain else []
    change = max((_difference(expected[name], plain[name]) for name in changed), default=0.0) if plain else 0.0
    weights = max(_difference(own[name], expected[name]) for name in common)
    return {
        "base": kind, "file": file, "tensors": len(changed or common), "change": f"{change:.2g}",
        "weights": f"{weights:.1e}", "noise": f"{_noise(networks, pipe):.1e}",
    }  # fmt: skip


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def _noise(networks: Any, pipe: Any) -> float:
    """Return the largest difference of the noise predicted by two UNets for the same latents and text features."""
    unet = pipe.unet
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(2, 16, unet.config.cross_attention_dim, generator=generator)
    added = None
    if hasattr(pipe, "text_encoder_2"):
        projected = pipe.text_encoder_2.config.projection_dim
        added = {"text_embeds": torch.randn(2, projected, generator=generator), "time_ids": torch.full((2, 6), 64.0)}
    found = [n(x, 500, text, added_cond_kwargs=added).sample for n in (networks["unet"], unet)]
    return _difference(*found)
