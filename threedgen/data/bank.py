"""Pictures that are rendered and encoded once, then read from the disk: what a diffusion model of latents learns from.

Rendering and encoding a picture costs about as much as a training step spends on it, so a step takes a few new ones and
otherwise returns to old ones.  What is stored is a cache only: picture i is the same whether read or made again (always
in the same block), so a lost or foreign file changes nothing but time.  Only an edit of the toybox itself is not
noticed: delete the folder then.
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
from threedgen.run.dtypes import mixed

T = TypeVar("T")
BLOCK = 32
"""Entries made together.  Fixed, because the last bits of a convolution depend on the size of its batch."""
TEXT = 160
"""Bytes kept of a caption."""


class Captioned(NamedTuple):
    """N entries of V views: rgb (N * V, H, W, 3) in [0, 1], views fastest, N captions, c2w (N * V, 4, 4)."""

    rgb: np.ndarray
    captions: list[str]
    c2w: np.ndarray


class Source(Protocol):
    """Endless captioned pictures; entry ``index`` is always the same."""

    n_view: int

    def describe(self) -> str:
        """What decides the pictures, in a line."""

    def block(self, indices: range, size: int) -> Captioned:
        """The entries ``indices`` at ``size`` pixels."""


class Bank(ABC):
    """Entries 0 ... ``count`` - 1 with latents and cameras in a folder, made in blocks when they are wanted first.

    ``told``: what decides them, beside the VAE's encoder, which must not change while the bank is in use. ``dtype``: of
    an entry, with the fields z (V, C, h, w), float16, and c2w (V, 4, 4).  Raises OSError.
    """

    def __init__(self, folder: Path, name: str, told: str, vae: Any, count: int, dtype: Any, block: int) -> None:
        self.vae = vae
        encoder = nn.ModuleList(part for part in (vae.encoder, vae.quant_conv) if part is not None)
        self.kept = BlockCache(folder, name, count, (), dtype, f"{told}\nVAE {digest(encoder)}\n", block)

    def prepare(self, indices: Sequence[int] | np.ndarray, place: tuple[int, int] = (0, 1)) -> None:
        """Makes those entries that are not there yet; process ``place`` (k, of n) its share of their blocks, or one of
        the next blocks, so that none is idle."""
        lacking, (number, count) = self.kept.lacking(indices), place
        if lacking:
            following = range(lacking[-1] + 1, min(lacking[-1] + count, len(self.kept.done)))
            spare = -len(lacking) % count
            lacking += self.kept.lacking(block * self.kept.size for block in following)[:spare]
        for block in lacking[number::count]:
            self.fill(block)

    @abstractmethod
    def fill(self, block: int) -> None:
        """Makes and stores one block."""

    def latents(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """(N, V, C, h, w) float32"""
        return torch.from_numpy(self._read(indices, "z")).float()

    def c2w(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """(N, V, 4, 4)"""
        return torch.from_numpy(self._read(indices, "c2w"))

    def _read(self, indices: Sequence[int] | np.ndarray, part: str) -> np.ndarray:
        self.prepare(indices)
        return np.stack([self.kept[i][part] for i in indices])


class LatentBank(Bank):
    """Latents, captions and cameras of the entries 0 ... ``count`` - 1 of a source, from entry ``first`` of it on."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        vae: Any,
        size: int,
        count: int,
        first: int = 0,
        block: int = BLOCK,
        text: int = TEXT,
    ) -> None:
        self.source, self.size, self.count, self.first = source, size, count, first
        side = size // 2 ** (len(vae.config["block_out_channels"]) - 1)
        n, told = source.n_view, f"{source.describe()}\nfrom {first}, {size} px"
        self.latent_shape = (n, int(vae.config["latent_channels"]), side, side)
        """Of an entry."""
        entry = [("z", np.float16, self.latent_shape), ("text", np.uint8, (text,)), ("c2w", np.float32, (n, 4, 4))]
        super().__init__(folder, "entries", told, vae, count, np.dtype(entry), block)

    def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return [unpack(text) for text in self._read(indices, "text")]

    def fill(self, block: int) -> None:
        """Render and encode one block."""
        count = self.kept.size
        start = self.first + block * count
        made, entries = self.source.block(range(start, start + count), self.size), np.empty(count, self.kept.dtype)
        z = encode(self.vae, torch.from_numpy(made.rgb)).cpu().numpy()
        entries["z"], entries["c2w"] = z.reshape(entries["z"].shape), made.c2w.reshape(entries["c2w"].shape)
        entries["text"] = [pack(text, entries["text"].shape[-1]) for text in made.captions]
        self.kept.store(block, entries)


def of_share(parts: Sequence[tuple[float, T]], luck: float) -> tuple[float, T]:
    """The part, with its share, to which a number in [0, 1) falls."""
    below = 0.0
    for share, part in parts:
        below += share
        if luck < below:
            return share, part
    return parts[-1]


def known_in_step(step: int, count: int, first: int, fresh: int) -> int:
    """How many of ``count`` entries there are in a step: ``first`` to begin with, and each adds ``fresh`` ones."""
    return min(count, first + step * fresh)


def seen_in_step(rng: np.random.Generator, step: int, batch: int, count: int, first: int, fresh: int) -> np.ndarray:
    """The entries of a step, ``batch`` of ``count``: the newest ``fresh`` ones, and others among all before them."""
    known = known_in_step(step, count, first, fresh)
    chosen = rng.integers(0, known, batch)
    new = min(fresh, count - known)
    chosen[:new] = range(known, known + new)
    return chosen


def pack(text: str, length: int) -> np.ndarray:
    """Bytes (length,) of a text, cut off or filled up with zeros."""
    return np.frombuffer(text.encode()[:length].ljust(length, b"\0"), np.uint8)


def unpack(line: np.ndarray) -> str:
    """The text of ``pack``, without half a letter at its end."""
    return bytes(line).rstrip(b"\0").decode(errors="ignore")


@torch.no_grad()
def encode(vae: Any, rgb: Tensor) -> Tensor:
    """Means of the posterior of pictures (B, H, W, 3) in [0, 1], times the VAE's scaling factor, float32."""
    with mixed(vae.device):
        x = (rgb.permute(0, 3, 1, 2) * 2 - 1).to(vae.device)
        z = torch.cat([vae.encode(part).latent_dist.mean.float() for part in x.split(16)])
    return z * float(vae.config["scaling_factor"])
