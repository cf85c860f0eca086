"""Random numbers keyed by what they are for, so that nothing random has to be saved.

Every draw of a run asks for a fresh generator by (seed, step, purpose, rank), so a resumed run draws what the
uninterrupted one would have drawn, and neither a checkpoint, nor validation, nor logging can shift a stream. The key is
hashed rather than added up: with ``seed + step`` runs would be copies of each other, one step apart.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, step: int, purpose: str, rank: int = 0) -> int:
    """Hashes "seed/step/purpose/rank" to 63 bits by blake2b: the same on every machine and in every process."""
    text = f"{int(seed)}/{int(step)}/{purpose}/{int(rank)}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, step: int, purpose: str, rank: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Makes a fresh torch generator for one use, e.g. ``generator(seed, step, "cameras", rank)``.

    Two uses with equal keys get equal numbers, so a purpose is asked for once in a step. CPU and GPU
    generators give different numbers for one key.
    """
    import torch  # here, because the command line must start without it

    made = torch.Generator(device=device)
    made.manual_seed(key(seed, step, purpose, rank))
    return made


def numpy_generator(seed: int, step: int, purpose: str, rank: int = 0) -> np.random.Generator:
    """Makes a fresh numpy generator of the same key (other numbers than torch's)."""
    return np.random.default_rng(key(seed, step, purpose, rank))


def seed_networks(seed: int, name: str) -> None:
    """Lets the random weights of new networks depend on nothing that happened before."""
    import torch

    torch.manual_seed(key(seed, 0, name))
