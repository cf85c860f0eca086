"""Small networks with random weights that look at pictures: a probe of the toybox, and a CLIP."""

from pathlib import Path

import torch

from threedgen.toybox.evaluation.labels import Labels
from threedgen.toybox.evaluation.options import ProbeNetworkConfig
from threedgen.toybox.evaluation.probe import Probe

TINY = ProbeNetworkConfig(image_size=32, channels=(8, 16, 16, 16))


def tiny_probe(seed: int = 0) -> Probe:
    torch.manual_seed(seed)
    return Probe(Labels.of_toybox(), TINY)


def tiny_clip(folder: Path) -> Path:
    """Writes a CLIP for pictures of 32 pixels, vectors (N, 8), and its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.support.tiny_prior import letter_tokenizer

    torch.manual_seed(0)
    tokens = letter_tokenizer()
    tokens.model_max_length = 48
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    text = {**tower, **ends, "vocab_size": len(tokens), "max_position_embeddings": 48}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), tokens).save_pretrained(folder)
    return folder
