"""Tensors under ldm's names become stock networks: parity with recorded outputs, and the way back by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support import official
from tests.support.ldm_names import to_ldm, unet_prefixes, vae_prefixes
from tests.support.parity_files import close, parted, recorded
from tests.support.tiny_prior import open_clip_names, tiny_text_encoder, tiny_unet, tiny_vae
from threedgen.config import ConfigError
from threedgen.guidance.multiview.joined import make_multiview, predict
from threedgen.guidance.weights.ldm import (
    convert_clip,
    convert_open_clip,
    convert_unet,
    convert_vae,
    split_checkpoint,
    unet_config,
)

TOLERANCE = 1e-4


UNETS = recorded("unet_", "w.input_blocks.0.0.weight")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights under ldm names, the other arrays, and the recorded options."""
    weights, rest, meta = parted(path, "w.")
    return {name: tensor.float() for name, tensor in weights.items()}, rest, meta


def heads(meta: dict[str, Any]) -> int:
    """Of each attention layer, or of those of the first level's width, where all are as wide."""
    return meta["heads"] or meta["model_channels"] // meta["head_channels"]


def loaded_unet(path: Path) -> UNet2DConditionModel:
    weights, _, meta = read(path)
    converted = convert_unet(weights, heads(meta))
    unet = make_multiview(UNet2DConditionModel.from_config(converted.config)).eval()
    unet.load_state_dict(converted.tensors)
    return unet


@UNETS
@torch.no_grad()
def test_unet_matches_the_reference(path: Path) -> None:
    _, rest, _ = read(path)
    unet, x = loaded_unet(path), rest["x"]
    t, text = rest["t"].reshape(-1).expand(len(x)), rest["context"]
    outputs = [name for name in rest if name.startswith("out_f")]
    assert outputs
    for name in outputs:
        views, _, kind = name.removeprefix("out_f").partition("_")
        camera = None if kind == "nocam" else rest["camera"]
        close(predict(unet, x, t, text, camera, int(views)), rest[name], TOLERANCE)


@UNETS
def test_unet_architecture_is_read_from_the_tensors(path: Path) -> None:
    weights, _, meta = read(path)
    config = unet_config(weights, heads(meta))
    assert config["block_out_channels"] == [meta["model_channels"] * m for m in meta["channel_mult"]]
    assert config["layers_per_block"] == meta["num_res_blocks"]
    assert config["use_linear_projection"] == meta["linear_projection"]
    assert config["cross_attention_dim"] == meta["context_dim"]
    assert config["projection_class_embeddings_input_dim"] == meta["camera_dim"]
    attends = [2**level in meta["attention_resolutions"] for level in range(len(meta["channel_mult"]))]
    assert [kind.startswith("CrossAttn") for kind in config["down_block_types"]] == attends


@recorded("vae", "w.encoder.conv_in.weight")
@torch.no_grad()
def test_vae_matches_the_reference(path: Path) -> None:
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
def test_text_encoder_matches_the_reference(path: Path) -> None:
    weights, rest, meta = read(path)
    heads = int(rest.get("heads", meta.get("heads", 0)))
    open_clip = "positional_embedding" in weights
    converted = convert_open_clip(weights) if open_clip else convert_clip(weights)
    encoder = CLIPTextModel(CLIPTextConfig(**converted.config | {"num_attention_heads": heads or 1})).eval()
    encoder.load_state_dict(converted.tensors)
    close(encoder(rest["tokens"]).last_hidden_state, rest["out"], TOLERANCE)


ARCHITECTURES = [
    {},
    {"layers_per_block": 3, "use_linear_projection": False, "attention_head_dim": 8},
    {
        "block_out_channels": (32, 64, 64, 96),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 40,
        "in_channels": 5,
        "out_channels": 3,
    },
    {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 2,
    },
    {"class_embed_type": None, "projection_class_embeddings_input_dim": None},
    {"projection_class_embeddings_input_dim": 12},
    {
        "block_out_channels": (64,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=range(len(ARCHITECTURES)))
def test_unet_there_and_back(config: dict[str, Any]) -> None:
    with torch.device("meta"):  # names and shapes decide; no memory, no random numbers
        unet = tiny_unet(**config)
    tensors = unet.state_dict()
    ldm = to_ldm(tensors, unet_prefixes(unet.config))
    assert len(ldm) == len(tensors)
    converted = convert_unet(ldm, heads=unet.config.attention_head_dim)
    assert converted.tensors.keys() == tensors.keys()
    assert all(tensor is tensors[name] for name, tensor in converted.tensors.items())
    with torch.device("meta"):
        back = UNet2DConditionModel.from_config(converted.config)
    shapes = {name: tensor.shape for name, tensor in back.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors.items()}
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        assert list(back.config[key]) == list(unet.config[key])


def test_the_released_unets_have_the_known_sizes() -> None:
    """Names and shapes only: the full MVDream sd-v2.1 and sd-v1.5 UNets (690 tensors)."""
    for kind, size, heads in (("sd21", 867_572_164, [5, 10, 20, 20]), ("sd15", 861_182_404, [8] * 4)):
        with torch.device("meta"):
            converted = convert_unet(official.ldm_unet(kind, official.WIDTHS))
        assert sum(t.numel() for t in converted.tensors.values()) == size
        assert len(converted.tensors) == 690
        assert converted.config["attention_head_dim"] == heads


@pytest.mark.parametrize("config", [{}, {"block_out_channels": (32, 64)}], ids=range(2))
@torch.no_grad()
def test_vae_there_and_back(config: dict[str, Any]) -> None:
    vae = tiny_vae(**config)
    ldm = to_ldm(vae.state_dict(), vae_prefixes(vae.config))
    as_convolution = {".q.", ".k.", ".v.", ".proj_out."}
    for name, tensor in ldm.items():
        if tensor.ndim == 2 and any(part in name for part in as_convolution):
            ldm[name] = tensor[:, :, None, None]
    converted = convert_vae({**ldm, "loss.logvar": torch.zeros(())})
    back = AutoencoderKL.from_config(converted.config).eval()
    back.load_state_dict(converted.tensors)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(back(image).sample, vae(image).sample)


@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_open_clip_there_and_back(layers: int) -> None:
    encoder = tiny_text_encoder(num_hidden_layers=layers, hidden_act="gelu", intermediate_size=40)
    converted = convert_open_clip(open_clip_names(encoder))
    back = CLIPTextModel(CLIPTextConfig(**converted.config | {"num_attention_heads": 2})).eval()
    back.load_state_dict(converted.tensors)
    ids = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = encoder(ids).last_hidden_state
    torch.testing.assert_close(back(ids).last_hidden_state, expected)


@torch.no_grad()
def test_clip_under_transformers_names() -> None:
    encoder = tiny_text_encoder(hidden_act="quick_gelu")
    named = {f"text_model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    converted = convert_clip({**named, "text_model.embeddings.position_ids": torch.arange(16)[None]})
    back = CLIPTextModel(CLIPTextConfig(**converted.config | {"num_attention_heads": 2})).eval()
    back.load_state_dict(converted.tensors)
    ids = torch.arange(16)[None]
    torch.testing.assert_close(back(ids).last_hidden_state, encoder(ids).last_hidden_state)


def test_a_checkpoint_is_split_by_prefix() -> None:
    one = torch.zeros(1)
    parts = split_checkpoint(
        {
            "betas": one,
            "model.diffusion_model.out.2.bias": one,
            "first_stage_model.quant_conv.bias": one,
            "cond_stage_model.model.ln_final.bias": one,
            "cond_stage_model.transformer.text_model.final_layer_norm.bias": one,
        }
    )
    assert {part: list(tensors) for part, tensors in parts.items()} == {
        "unet": ["out.2.bias"],
        "vae": ["quant_conv.bias"],
        "open_clip": ["ln_final.bias"],
        "clip": ["text_model.final_layer_norm.bias"],
    }


def ldm_unet() -> dict[str, Tensor]:
    unet = tiny_unet()
    return to_ldm(unet.state_dict(), unet_prefixes(unet.config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.clear(), "not an ldm UNet"),
        (lambda w: w.update({"input_blocks.9.0.x.weight": torch.zeros(1)}), "without a gap"),
        (lambda w: w.update({"label_emb.0.weight": torch.zeros(1)}), "unknown tensor 'label_emb.0.weight'"),
        (lambda w: w.pop("out.2.weight"), "no tensor 'out.2.weight'"),
        (lambda w: w.update({"input_blocks.0.0.weight": torch.zeros(16, 4, 3, 3)}), "first level has 32"),
        (lambda w: w.update({"input_blocks.0.0.weight": torch.zeros(())}), "has the shape"),
        (lambda w: [w.pop(n) for n in list(w) if n.startswith("middle_block.1")], "middle block"),
    ],
)
def test_another_architecture_is_refused(change: Any, sentence: str) -> None:
    weights = ldm_unet()
    change(weights)
    with pytest.raises(ConfigError, match=sentence):
        convert_unet(weights, heads=4)


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split into 5 heads"):
        convert_unet(ldm_unet(), heads=5)
    with pytest.raises(ConfigError, match="cannot be split into heads of 64 channels"):
        convert_unet(ldm_unet())


@pytest.mark.parametrize("convert", [convert_vae, convert_open_clip, convert_clip])
def test_foreign_tensors_are_refused(convert: Any) -> None:
    for weights in ({}, {"x": torch.zeros(2)}, ldm_unet()):
        with pytest.raises(ConfigError, match="not a"):
            convert(weights)
