"""Size of the chunks in which training renders keep their graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from threedgen.representations.volume.render import samples_that_fit
from threedgen.run.memory import free_bytes

OOM_FALLBACK_SAMPLES = 1 << 18
"""Samples assumed for a render that ran out of memory before its chunk size was known."""
OOM_FACTOR = 4
"""Divisor of the chunk size after a step that ran out of memory."""


class RenderChunks:
    """Samples whose graph is held at a time: `march.chunk`, or measured from the free memory at first use.

    Attributes:
        measured: measured sizes by kind of render. Saved in checkpoints: the size decides the last bits of a gradient.
        limit: upper bound after a step ran out of memory, or None.
        last: samples whose graph the last render held, or None.
    """

    def __init__(self, chunk: int | str | None) -> None:
        self.chunk = chunk
        self.measured: dict[str, int] = {}
        self.limit: int | None = None
        self.last: int | None = None

    def size(self, normals: bool, device: torch.device, sample_bytes: Callable[[], float]) -> int | None:
        """Return the maximum number of samples in a chunk; None: one chunk.

        Args:
            normals: the render needs normals.
            sample_bytes: measures the memory of a sample's graph; called at most once per kind of render.
        """
        chunk = self.chunk
        if isinstance(chunk, str):  # auto
            kind = "with normals" if normals else "without normals"
            if kind not in self.measured:
                self.measured[kind] = samples_that_fit(free_bytes(device), sample_bytes())
            chunk = self.measured[kind]
        return chunk if self.limit is None else min(self.limit, chunk or self.limit)

    def reduce(self) -> int:
        """Reduce the size after a step ran out of memory; return the new limit."""
        self.limit = max(1, (self.last or OOM_FALLBACK_SAMPLES) // OOM_FACTOR)
        return self.limit
