"""Disk cache of encoded training images for latent diffusion models.

Rendering and encoding an image costs about as much as one training step on it, so each step makes a few new images and
reuses older ones. Entry i has the same content whether it is read or made again (always in the same block), so a lost
or unrelated file costs only time. The cache does not notice edits of the toybox code: delete the folder after those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from threedgen.run.cache import BlockCache, digest
from threedgen.run.dtypes import autocast_bf16

T = TypeVar("T")
BLOCK = 32
"""Entries per block. Fixed, because the last bits of a convolution depend on the batch size."""
TEXT_BYTES = 160
"""Stored bytes of a caption."""


class Captioned(NamedTuple):
    """N entries of V consecutive views: rgb (N * V, H, W, 3) in [0, 1], N captions, c2w (N * V, 4, 4)."""

    rgb: np.ndarray
    captions: list[str]
    c2w: np.ndarray


class Source(Protocol):
    """Endless, deterministic list of captioned images."""

    n_view: int

    def describe(self) -> str:
        """Return one line with everything that determines the images."""

    def block(self, indices: range, size: int) -> Captioned:
        """Return the entries `indices`, rendered at `size` pixels per side."""


class Bank(ABC):
    """Disk cache of `count` entries with latents and cameras, filled in blocks of `block` entries on first use.

    `description`: text that determines the entries besides the VAE encoder, which must not change during use. `dtype`:
    numpy dtype of an entry with the fields z (V, C, h, w), float16, and c2w (V, 4, 4).
    """

    def __init__(self, folder: Path, name: str, description: str, vae: Any, count: int, dtype: Any, block: int) -> None:
        self.vae = vae
        encoder = nn.ModuleList(part for part in (vae.encoder, vae.quant_conv) if part is not None)
        self.cache = BlockCache(folder, name, count, (), dtype, f"{description}\nVAE {digest(encoder)}\n", block)

    def prepare(self, indices: Sequence[int] | np.ndarray, rank: tuple[int, int] = (0, 1)) -> None:
        """Fill the missing blocks of `indices` for process `rank` = (k, n), or a following block if it has none."""
        lacking, (number, count) = self.cache.missing_blocks(indices), rank
        if lacking:
            following = range(lacking[-1] + 1, min(lacking[-1] + count, len(self.cache.done)))
            spare = -len(lacking) % count
            lacking += self.cache.missing_blocks(block * self.cache.size for block in following)[:spare]
        for block in lacking[number::count]:
            self.fill(block)

    @abstractmethod
    def fill(self, block: int) -> None:
        """Make and store one block."""

    def latents(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the latents (N, V, C, h, w), float32."""
        return torch.from_numpy(self._read(indices, "z")).float()

    def c2w(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the camera poses (N, V, 4, 4)."""
        return torch.from_numpy(self._read(indices, "c2w"))

    def _read(self, indices: Sequence[int] | np.ndarray, field: str) -> np.ndarray:
        self.prepare(indices)
        return np.stack([self.cache[i][field] for i in indices])


class LatentBank(Bank):
    """Latents, captions (at most `text` bytes) and cameras of the first `count` entries of a source."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        vae: Any,
        size: int,
        count: int,
        block: int = BLOCK,
        text: int = TEXT_BYTES,
    ) -> None:
        self.source, self.size, self.count = source, size, count
        side = size // 2 ** (len(vae.config["block_out_channels"]) - 1)
        n, description = source.n_view, f"{source.describe()}\nfrom 0, {size} px"
        self.latent_shape = (n, int(vae.config["latent_channels"]), side, side)
        """Shape (V, C, h, w) of an entry's latents."""
        entry = [("z", np.float16, self.latent_shape), ("text", np.uint8, (text,)), ("c2w", np.float32, (n, 4, 4))]
        super().__init__(folder, "entries", description, vae, count, np.dtype(entry), block)

    def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return [unpack(text) for text in self._read(indices, "text")]

    def fill(self, block: int) -> None:
        count = self.cache.size
        start = block * count
        rendered, entries = self.source.block(range(start, start + count), self.size), np.empty(count, self.cache.dtype)
        z = encode(self.vae, torch.from_numpy(rendered.rgb)).cpu().numpy()
        entries["z"], entries["c2w"] = z.reshape(entries["z"].shape), rendered.c2w.reshape(entries["c2w"].shape)
        entries["text"] = [pack(text, entries["text"].shape[-1]) for text in rendered.captions]
        self.cache.store(block, entries)


def choose_by_share(parts: Sequence[tuple[float, T]], u: float) -> tuple[float, T]:
    """Return the (share, part) whose interval of the cumulative shares contains `u` in [0, 1)."""
    cumulative = 0.0
    for share, part in parts:
        cumulative += share
        if u < cumulative:
            return share, part
    return parts[-1]


def available_entries(step: int, count: int, first: int, fresh: int) -> int:
    """Return the number of entries available at `step`: `first` at step 0, `fresh` more per step, at most `count`."""
    return min(count, first + step * fresh)


def sample_entries(rng: np.random.Generator, step: int, batch: int, count: int, first: int, fresh: int) -> np.ndarray:
    """Sample the entry indices (batch,) of a step: first the `fresh` new ones, then random older ones."""
    available = available_entries(step, count, first, fresh)
    indices = rng.integers(0, available, batch)
    new = min(fresh, count - available)
    indices[:new] = range(available, available + new)
    return indices


def pack(text: str, length: int) -> np.ndarray:
    """Return the UTF-8 bytes (length,) of a text, truncated or padded with zeros."""
    return np.frombuffer(text.encode()[:length].ljust(length, b"\0"), np.uint8)


def unpack(data: np.ndarray) -> str:
    """Return the text that `pack` stored, without an incomplete character at its end."""
    return bytes(data).rstrip(b"\0").decode(errors="ignore")


@torch.no_grad()
def encode(vae: Any, rgb: Tensor) -> Tensor:
    """Encode images (B, H, W, 3) in [0, 1] to latents (B, C, h, w), float32: posterior mean times scaling factor."""
    with autocast_bf16(vae.device):
        x = (rgb.permute(0, 3, 1, 2) * 2 - 1).to(vae.device)
        z = torch.cat([vae.encode(part).latent_dist.mean.float() for part in x.split(16)])
    return z * float(vae.config["scaling_factor"])
