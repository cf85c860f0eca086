"""The hash grid of tiny-cuda-nn, where that is installed: its kernels, our table.

The convention is the same, so the table, flattened, is the parameter vector of `tinycudann.Encoding` as it is.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import tinycudann
import torch
from torch import Tensor
from torch.func import functional_call

from threedgen.config.errors import ConfigError

from . import torch_twin
from .torch_twin import Levels

WIDTHS = (1, 2, 4, 8)
"""Features an entry may have: the kernels exist for these."""


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As torch_twin.encode, on a CUDA device. Raises ConfigError for a number of features without kernels."""
    inside = torch.nan_to_num(x).clamp(0, 1)
    if len(x) == 0:
        return torch_twin.encode(inside, table, levels)
    module = _module(levels, table.shape[1])
    return functional_call(module, {"params": table.reshape(-1)}, (inside,)).to(table.dtype)


position_gradient = partial(torch_twin.position_gradient, encode=encode)


@lru_cache(maxsize=8)
def _module(levels: Levels, n_features: int) -> Any:
    """tiny-cuda-nn's module of this geometry; the parameters that it comes with are never read."""
    if n_features not in WIDTHS:
        raise ConfigError(
            f"backend 'tinycudann' has kernels for 1, 2, 4 and 8, not {n_features}; choose backend=auto", "n_features"
        )
    return tinycudann.Encoding(
        n_input_dims=3,
        encoding_config={
            "otype": "HashGrid",
            "n_levels": levels.n_levels,
            "n_features_per_level": n_features,
            "log2_hashmap_size": levels.log2_entries,
            "base_resolution": levels.base,
            "per_level_scale": levels.growth,
        },
        dtype=torch.float32,
    )
