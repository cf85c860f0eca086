"""Rank of this process in a distributed run, from the environment: before Lightning is imported, and without torch."""

from __future__ import annotations

import os

_RANKS = "RANK LOCAL_RANK NODE_RANK SLURM_PROCID JSM_NAMESPACE_RANK".split()
"""Environment variables, one of which is not 0 in the processes of a distributed run other than rank 0."""


def local_rank() -> int:
    """Return the number of this process on its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def is_rank_zero() -> bool:
    """Return whether this is the process that writes and prints; true without a distributed run."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
