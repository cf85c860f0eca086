"""Small MV-Adapter models, and adapters with an effect."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.kept_folder import made_once
from tests.support.tiny_prior import NO_CAMERA, tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer
from threedgen.guidance.attention.decoupled import Branch
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings
from threedgen.guidance.priors.mvadapter.weights import save_adapter

BOTH: tuple[Branch, ...] = ("mv", "ref")
TOYBOX: dict[str, Any] = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
"""Blocks as in the toybox's UNet and in SDXL's."""


def awaken(network: nn.Module) -> None:
    """Give the zero-initialised outputs of branches small random weights."""
    g = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if "to_out_mv" in name or "to_out_ref" in name:
            with torch.no_grad():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=g))


def tiny_model(**unet: Any) -> MVAdapter:
    """A 2D model with random weights and a small vocabulary."""
    return MVAdapter(tiny_unet(**NO_CAMERA, **unet), tiny_vae(), tiny_text_encoder(), word_tokenizer(), dtype="fp32")


def adapted_model(
    settings: AdapterSettings | None = None, branches: tuple[Branch, ...] = BOTH, **unet: Any
) -> MVAdapter:
    model = tiny_model(**unet)
    network = AdaptedUNet(model.unet, model.factor, settings or AdapterSettings(), branches)
    awaken(network)
    return model.with_network(network)


def adapter_base() -> Path:
    """Return the folder of a 2D model for adapters."""
    return made_once("adapter-base", lambda folder: tiny_model().save(folder / "base")) / "base"


def tiny_prior_config(folder: Path, settings: AdapterSettings | None = None, **options: Any) -> dict[str, Any]:
    """Return the section "prior" of a config and write its adapter into `folder`."""
    folder.mkdir(exist_ok=True)
    network = adapted_model(settings).adapted
    assert network is not None
    save_adapter(folder / "adapter.safetensors", network)
    files = {"weights": str(adapter_base()), "adapter": str(folder / "adapter.safetensors")}
    return {"name": "mvadapter", **files, "dtype": "fp32", **options}


GEOMETRY = AdapterSettings(layout="rowcol", control="geometry")  # settings of an adapter for the six sides of a mesh
