"""Chunk size of training renders: the number of ray samples whose autograd graph is in memory at one time."""

from collections.abc import Callable

import torch

from threedgen.representations.volume.render import samples_that_fit
from threedgen.run.memory import free_bytes

OOM_FALLBACK_SAMPLES = 1 << 18
"""Chunk size assumed for a render that ran out of memory before its real chunk size was known."""
OOM_FACTOR = 4
"""Divisor of the chunk size after a step that ran out of memory."""


class RenderChunks:
    """Maximum number of ray samples whose autograd graph is in memory at one time in a training render (chunk size).

    It is `march.chunk`; for "auto" it is computed from the free memory.

    Attributes:
        measured: sizes computed for "auto", by the keys "with normals" and "without normals"; saved in checkpoints.
        limit: upper bound since a step ran out of memory, or None.
        last: number of samples in the largest chunk of the last render, or None before the first render.
    """

    def __init__(self, chunk: int | str | None) -> None:
        self.chunk = chunk
        # saved because the order of summation, and so the last bits of a gradient, depends on the size
        self.measured: dict[str, int] = {}
        self.limit: int | None = None
        self.last: int | None = None

    def size(self, normals: bool, device: torch.device, sample_bytes: Callable[[], float]) -> int | None:
        """Return the maximum number of samples in a chunk; None: no limit, the render is one chunk.

        `normals` is True for renders with normals. `device` is the device whose free memory counts for "auto".
        `sample_bytes` measures the bytes of the autograd graph per sample; it is called once per value of `normals`.
        """
        chunk = self.chunk
        if isinstance(chunk, str):  # auto
            kind = "with normals" if normals else "without normals"
            if kind not in self.measured:
                self.measured[kind] = samples_that_fit(free_bytes(device), sample_bytes())
            chunk = self.measured[kind]
        return chunk if self.limit is None else min(self.limit, chunk or self.limit)

    def reduce(self) -> int:
        """Reduce the chunk size after a step that ran out of memory, and return the new upper bound."""
        self.limit = max(1, (self.last or OOM_FALLBACK_SAMPLES) // OOM_FACTOR)
        return self.limit
