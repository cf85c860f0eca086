"""SDXL's conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2 and table 1).

Two text encoders with concatenated features, and added conditioning of the UNet: the pooled text of the second encoder,
image size and crop. The pooled text is carried as one more token behind the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from torch import Tensor

SIZE_NUMBERS = 6
"""Size conditioning: original height and width, crop top and left, target height and width."""


def has_added_conditioning(unet: UNet2DConditionModel) -> bool:
    """Return whether a UNet takes SDXL's added conditioning."""
    return unet.config.get("addition_embed_type") == "text_time"


def pooled_width(unet: UNet2DConditionModel) -> int:
    """Return the width of the pooled text that such a UNet takes."""
    c = unet.config
    return int(c["projection_class_embeddings_input_dim"]) - SIZE_NUMBERS * int(c["addition_time_embed_dim"])


def encode_both(encoders: Sequence[Any], ids: Sequence[Tensor]) -> Tensor:
    """Encode token numbers (n, L) of the two encoders: (n, L + 1, D).

    The penultimate features of both, concatenated, and as last token the pooled text of the second, zero-padded.
    """
    encoded = [encoder(numbers, output_hidden_states=True) for encoder, numbers in zip(encoders, ids, strict=True)]
    words = torch.cat([part.hidden_states[-2].float() for part in encoded], dim=-1)
    pooled = encoded[1].text_embeds.float()[:, None]
    return torch.cat([words, F.pad(pooled, (0, words.shape[-1] - pooled.shape[-1]))], dim=1)


def split_text(unet: UNet2DConditionModel, text: Tensor, height: int, width: int) -> tuple[Tensor, dict[str, Any]]:
    """Split text (B, L + 1, D) of `encode_both` into words (B, L, D) and the UNet's added conditioning.

    Images are uncropped, `height` x `width` pixels. For other UNets the text is returned as it is.
    """
    if not has_added_conditioning(unet):
        return text, {}
    numbers = text.new_tensor([height, width, 0, 0, height, width]).expand(len(text), SIZE_NUMBERS)
    more = {"text_embeds": text[:, -1, : pooled_width(unet)], "time_ids": numbers}
    return text[:, :-1], {"added_cond_kwargs": more}
