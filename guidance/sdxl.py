"""What SDXL has beside Stable Diffusion (Podell et al. 2023, arXiv 2307.01952, section 2.2 and table 1): two text
encoders, whose features stand side by side, and a UNet that is also told the second's summary of the whole text, how
large the picture is and how it was cropped.

The summary travels as one more token behind the words, so that what carries texts about need not know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 6
"""Of a picture: height and width it had, the corner of its crop (top, left), height and width it should have."""


def told_more(unet: Any) -> bool:
    """Is it a UNet as SDXL has it?"""
    return unet.config.get("addition_embed_type") == "text_time"


def summary_width(unet: Any) -> int:
    """Features of the summary that such a UNet takes."""
    c = unet.config
    return int(c["projection_class_embeddings_input_dim"]) - NUMBERS * int(c["addition_time_embed_dim"])


def both_texts(encoders: Sequence[Any], ids: Sequence[Tensor]) -> Tensor:
    """Token numbers (n,L) for each of the two encoders -> (n,L+1,D): side by side the features before their last
    layers, and behind them, filled up with zeros, the summary by the second."""
    seen = [encoder(numbers, output_hidden_states=True) for encoder, numbers in zip(encoders, ids, strict=True)]
    words = torch.cat([part.hidden_states[-2].float() for part in seen], dim=-1)
    summary = seen[1].text_embeds.float()[:, None]
    return torch.cat([words, F.pad(summary, (0, words.shape[-1] - summary.shape[-1]))], dim=1)


def taken_apart(unet: Any, text: Tensor, height: int, width: int) -> tuple[Tensor, dict[str, Any]]:
    """Text (B,L+1,D) of ``both_texts`` as words (B,L,D) and the further arguments of such a UNet for whole pictures of
    ``height`` x ``width``; of any other UNet the text as it is."""
    if not told_more(unet):
        return text, {}
    numbers = text.new_tensor([height, width, 0, 0, height, width]).expand(len(text), NUMBERS)
    more = {"text_embeds": text[:, -1, : summary_width(unet)], "time_ids": numbers}
    return text[:, :-1], {"added_cond_kwargs": more}
