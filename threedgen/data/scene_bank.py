"""Scenes whose views are rendered, or read, and encoded once: what learns from several views at a time takes these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.views import resize
from threedgen.run.arrays import Array

from .bank import Bank, encode, pack, unpack
from .scene_views import SceneSource

BLOCK = 4
"""Scenes made together."""
TEXT = 240
"""Bytes kept of a caption."""


class SceneBank(Bank):
    """Latents, captions, cameras and depth of the scenes 0 ... ``count`` - 1 of a source (default: all of it).

    size: (H,W) of the views, which are encoded as they are, or ``half`` as large; cameras and depth stay.
    Depth is kept as float16: two millimetres at four metres.
    Scenes are made when they are wanted, in blocks. Raises OSError, ValueError for sides that the VAE cannot halve
    often enough, and what the source raises.
    """

    def __init__(
        self, folder: Path, source: SceneSource, vae: Any, count: int | None = None, half: bool = False
    ) -> None:
        first = source.scene(0)
        self.source, self.n_view = source, source.n_view
        self.count = len(source) if count is None else min(count, len(source))
        at = first.views.at
        self.size, self.has_depth = (at.height, at.width), first.depth is not None
        n, self.encoded = self.n_view, (at.height // 2, at.width // 2) if half else self.size
        entry: list[tuple[Any, ...]] = [
            ("z", np.float16, (n, *latent_shape(vae, *self.encoded))),
            ("text", np.uint8, (n, TEXT)),
            ("K", np.float32, (n, 3, 3)),
            ("c2w", np.float32, (n, 4, 4)),
            ("given", np.bool_, (n,)),
        ]
        if self.has_depth:
            entry.append(("depth", np.float16, (n, *self.size)))
        told = source.describe() + (", half as large" if half else "")
        super().__init__(folder, "scenes", told, vae, self.count, np.dtype(entry), BLOCK)

    def captions(self, indices: Sequence[int] | Array) -> list[tuple[str, ...]]:
        """Of each scene those of its views."""
        return [tuple(unpack(text) for text in texts) for texts in self._read(indices, "text")]

    def depth(self, indices: Sequence[int] | Array) -> Tensor:
        """(N,V,H,W) float32, metres along the viewing axis, 0 where it is unknown. Raises ValueError without depth."""
        if not self.has_depth:
            raise ValueError("these scenes have no depth")
        return torch.from_numpy(self._read(indices, "depth")).float()

    def given(self, indices: Sequence[int] | Array) -> Tensor:
        """(N,V) bool: the views that are known beforehand."""
        return torch.from_numpy(self._read(indices, "given"))

    def cameras(self, index: int) -> Cameras:
        """Of the views of one scene."""
        (K,), c2w = self._read([index], "K"), self.c2w([index])[0]
        return Cameras(c2w, Projection(torch.from_numpy(K)), *self.size)

    def fill(self, block: int) -> None:
        """Makes and encodes one block; behind the last scene there is nothing."""
        entries = np.zeros(BLOCK, self.kept.dtype)
        for place, index in enumerate(range(block * BLOCK, min((block + 1) * BLOCK, self.count))):
            scene, row = self.source.scene(index), entries[place]
            row["z"] = encode(self.vae, resize(scene.views.images, *self.encoded)).cpu().numpy()
            row["text"] = np.stack([pack(text, TEXT) for text in scene.captions])
            row["K"], row["c2w"] = scene.views.at.K.numpy(), scene.views.at.c2w.numpy()
            row["given"][list(scene.given)] = True
            if scene.depth is not None:
                row["depth"] = scene.depth.numpy()
        self.kept.store(block, entries)


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """(C,h,w) of the latents of a picture. Raises ValueError for sides that cannot be halved often enough."""
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if height % factor or width % factor:
        raise ValueError(f"pictures of {height} x {width} pixels should have sides that are multiples of {factor}")
    return int(vae.config["latent_channels"]), height // factor, width // factor
