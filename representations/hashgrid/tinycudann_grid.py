"""Hash grid on GPUs with tiny-cuda-nn.

The parameter vector of `tinycudann.Encoding` is the flattened feature table (entries, F) of the other back ends.
"""

from functools import lru_cache
from typing import Any

import tinycudann
import torch
from torch import Tensor
from torch.func import functional_call

from threedgen.config.errors import ConfigError

from . import torch_twin
from .torch_twin import Levels


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    inside = torch.nan_to_num(x).clamp(0, 1)
    if len(x) == 0:
        return torch_twin.encode(inside, table, levels)
    module = _module(levels, table.shape[1])
    return functional_call(module, {"params": table.reshape(-1)}, (inside,)).to(table.dtype)


@lru_cache(maxsize=8)
def _module(levels: Levels, n_features: int) -> Any:
    # the module's own parameters are not used
    if n_features not in (1, 2, 4, 8):
        raise ConfigError("should be 1, 2, 4 or 8 for tinycudann. Set backend=auto", "n_features", n_features)
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
