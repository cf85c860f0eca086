"""Rank of this process in a distributed run, from environment variables, without importing torch or Lightning."""

import os

_RANKS = "RANK LOCAL_RANK NODE_RANK SLURM_PROCID JSM_NAMESPACE_RANK".split()
"""Environment variables of launchers. In every process except rank 0, at least one of them is not 0."""


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, which writes files and prints; True if the run is not distributed."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
