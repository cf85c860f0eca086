from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support import official
from tests.support.errors import refused
from tests.support.ldm_names import to_ldm, unet_prefixes
from tests.support.parity_files import close, parted, recorded
from tests.support.tiny_prior import open_clip_names, tiny_text_encoder, tiny_unet
from threedgen.guidance.attention.joined import make_multiview, unet_output
from threedgen.guidance.weights.ldm import convert_clip, convert_open_clip, convert_unet, convert_vae

TOLERANCE = 1e-4
UNETS = recorded("unet_", "w.input_blocks.0.0.weight")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights under ldm names, the other arrays, and the recorded options."""
    weights, rest, meta = parted(path, "w.")
    return {name: tensor.float() for name, tensor in weights.items()}, rest, meta


def heads(meta: dict[str, Any]) -> int:
    """Return the heads of each layer, or of the first level where heads have equal width."""
    return meta["heads"] or meta["model_channels"] // meta["head_channels"]


def loaded_unet(path: Path) -> UNet2DConditionModel:
    weights, _, meta = read(path)
    converted = convert_unet(weights)
    config = converted.config | {"attention_head_dim": heads(meta)}
    unet = make_multiview(UNet2DConditionModel.from_config(config)).eval()
    unet.load_state_dict(converted.tensors)
    return unet


@UNETS
@torch.no_grad()
def test_unet_matches_recording(path: Path) -> None:
    _, rest, _ = read(path)
    unet, x = loaded_unet(path), rest["x"]
    t, text = rest["t"].reshape(-1).expand(len(x)), rest["context"]
    outputs = [name for name in rest if name.startswith("out_f")]
    assert outputs
    for name in outputs:
        views, _, kind = name.removeprefix("out_f").partition("_")
        camera = None if kind == "nocam" else rest["camera"]
        close(unet_output(unet, x, t, text, camera, int(views)), rest[name], TOLERANCE)


@recorded("vae", "w.encoder.conv_in.weight")
@torch.no_grad()
def test_vae_matches_recording(path: Path) -> None:
    weights, rest, meta = read(path)
    converted = convert_vae(weights)
    vae = AutoencoderKL.from_config(converted.config).eval()
    vae.load_state_dict(converted.tensors)
    posterior = vae.encode(rest["img"]).latent_dist
    scale = meta.get("scale_factor", 0.18215)
    close(posterior.parameters, rest["moments"], TOLERANCE)
    close(posterior.mean, rest["mean"], TOLERANCE)
    close(posterior.logvar, rest["logvar"], TOLERANCE)
    close(scale * (posterior.mean + posterior.std * rest["post_noise"]), rest["latent_scaled"], TOLERANCE)
    close(vae.decode(rest["z"] / scale).sample, rest["decoded"], TOLERANCE)


@recorded("clip_text", "tokens")
@torch.no_grad()
def test_text_encoder_matches_recording(path: Path) -> None:
    weights, rest, meta = read(path)
    heads = int(rest.get("heads", meta.get("heads", 0)))
    open_clip = "positional_embedding" in weights
    converted = convert_open_clip(weights) if open_clip else convert_clip(weights)
    encoder = CLIPTextModel(CLIPTextConfig(**converted.config | {"num_attention_heads": heads or 1})).eval()
    encoder.load_state_dict(converted.tensors)
    close(encoder(rest["tokens"]).last_hidden_state, rest["out"], TOLERANCE)


def test_text_encoder_converted_from_diffusers_keeps_its_last_layer() -> None:
    encoder = tiny_text_encoder(num_hidden_layers=23)
    tensors = open_clip_names(encoder, more=False)
    del tensors["text_projection"], tensors["logit_scale"]
    tensors["transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    converted = convert_open_clip(tensors)
    expected = encoder.state_dict()
    assert converted.config["num_hidden_layers"] == 23 and converted.tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.tensors.items())
    whole = convert_open_clip(open_clip_names(encoder))
    assert whole.config == converted.config and whole.tensors.keys() == expected.keys()


@pytest.mark.parametrize(
    ("kind", "size", "heads"), [("sd21", 867_572_164, [5, 10, 20, 20]), ("sd15", 861_182_404, [8] * 4)]
)
def test_released_unets_have_known_sizes(kind: str, size: int, heads: list[int]) -> None:
    """Names and shapes of the full MVDream sd-v2.1 and sd-v1.5 UNets."""
    with torch.device("meta"):
        converted = convert_unet(official.ldm_unet(kind, official.WIDTHS))
    assert sum(t.numel() for t in converted.tensors.values()) == size
    assert len(converted.tensors) == 690
    assert converted.config["attention_head_dim"] == heads


def ldm_unet() -> dict[str, Tensor]:
    unet = tiny_unet()
    return to_ldm(unet.state_dict(), unet_prefixes(unet.config))


@pytest.mark.parametrize("convert", [convert_vae, convert_open_clip, convert_clip])
def test_converters_refuse_foreign_tensors(convert: Any) -> None:
    for weights in ({}, {"x": torch.zeros(2)}, ldm_unet()):
        with refused():
            convert(weights)
