"""Variants of the tiny prior of threedgen.testing."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tests.support.script_poses import script_poses
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.testing import TEXT_WIDTH, WORDS, tiny_prior, tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer  # noqa: F401


def letter_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer without merges: one token per letter; "!" is token 0."""
    letters = "!abcdefghijklmnopqrstuvwxyz0123456789,."
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=16)


def tiny_coarse(**options: Any) -> CoarsePredictor:
    torch.manual_seed(4)
    small = {"text_width": TEXT_WIDTH, "size": 8, "width": 32, "channels": (8, 8), "blocks": (0, 1)}
    return CoarsePredictor(**(small | options)).eval()


NO_CAMERA: dict[str, Any] = {"class_embed_type": None, "projection_class_embeddings_input_dim": None}


def coarse_prior(coarse: CoarsePredictor | None = None) -> MVDream:
    """A tiny prior whose UNet takes a coarse prediction."""
    parts = tiny_unet(in_channels=8, out_channels=4), tiny_vae(), tiny_text_encoder(), word_tokenizer()
    return MVDream(*parts, coarse=coarse or tiny_coarse(), dtype="fp32")


def open_clip_names(encoder: CLIPTextModel, more: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a CLIPTextModel under OpenCLIP's names; with `more`, one more block at the end."""
    state, ldm = encoder.state_dict(), {}
    layers = encoder.config.num_hidden_layers
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for i in range(layers):
        for kind in ("weight", "bias"):
            inner = f"encoder.layers.{i}."
            fused = [state[f"{inner}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            ldm[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(fused)
            for ours, theirs in names.items():
                ldm[f"transformer.resblocks.{i}.{ours}.{kind}"] = state[f"{inner}{theirs}.{kind}"]
    last = {n.replace(f".{layers - 1}.", f".{layers}."): t for n, t in ldm.items() if f".{layers - 1}." in n}
    ldm |= (last if more else {}) | {"text_projection": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
    ldm["positional_embedding"] = state["embeddings.position_embedding.weight"]
    ldm["token_embedding.weight"] = state["embeddings.token_embedding.weight"]
    ldm |= {f"ln_final.{kind}": state[f"final_layer_norm.{kind}"] for kind in ("weight", "bias")}
    return ldm


def cpu(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def output(prior: MVDream) -> Tensor:
    """Return the prediction of a prior for fixed noise, in multi-view mode."""
    x, text = torch.randn(4, 4, 8, 8, generator=cpu()), prior.encode_prompt(["a red dog"]).repeat(4, 1, 1)
    with torch.no_grad():
        return prior.denoise(x, torch.full((4,), 500), text, camera_vector(script_poses(4)), 4)
