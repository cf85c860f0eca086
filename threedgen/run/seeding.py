"""Random generators keyed by (seed, step, purpose, rank), so that no random state has to be saved.

A resumed run uses the same random numbers as an uninterrupted run. Checkpoints, validation and logging do not change
these numbers. The key is a hash: with ``seed + step``, two runs with seeds 1 and 2 would share most random numbers.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, step: int, purpose: str, rank: int = 0) -> int:
    """Return the seed of a random generator: the 63-bit BLAKE2b hash of "seed/step/purpose/rank".

    It is the same on every machine. `purpose` is a text such as "cameras", and `rank` the rank of the process in a
    distributed run.
    """
    text = f"{int(seed)}/{int(step)}/{purpose}/{int(rank)}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, step: int, purpose: str, rank: int = 0) -> torch.Generator:
    """Return a torch generator on the CPU that is seeded with a hash of (seed, step, purpose, rank).

    `purpose` is a text such as "cameras". The same arguments give the same numbers, so use each purpose only once per
    step.
    """
    import torch  # here, because the command line must start without it

    return torch.Generator().manual_seed(key(seed, step, purpose, rank))


def numpy_generator(seed: int, step: int, purpose: str, rank: int = 0) -> np.random.Generator:
    """Return a NumPy generator that is seeded with a hash of (seed, step, purpose, rank).

    Its random numbers differ from those of the torch generator that `generator` returns.
    """
    return np.random.default_rng(key(seed, step, purpose, rank))


def seed_networks(seed: int, name: str) -> None:
    """Seed torch's global generators from a hash of `seed` and `name`.

    Call it before each network that is created with random weights, with a different `name` for each network.
    """
    import torch

    torch.manual_seed(key(seed, 0, name))
