"""Disk cache of encoded multi-view scenes for training."""

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
"""Scenes that are rendered and stored together."""
TEXT_BYTES = 240
"""Bytes stored per caption. Longer captions are truncated."""


class SceneBank(Bank):
    """Disk cache of the latents, captions, cameras and depth of scenes. Scenes are rendered and encoded on first use.

    Depth is stored as float16, which resolves two millimetres at four metres.

    Args:
        folder: folder of the cache files.
        source: scenes to cache; all have V views of H x W pixels.
        vae: autoencoder of diffusers.
        count: number of scenes, the first ones of the source; None: all.
        half: encode the images at half their height and width. Cameras and depth keep the full size.

    Raises:
        ValueError: if the VAE cannot encode images of this size.
    """

    def __init__(
        self, folder: Path, source: SceneSource, vae: Any, count: int | None = None, half: bool = False
    ) -> None:
        first = source.scene(0)
        self.source, self.n_view = source, source.n_view
        self.count = len(source) if count is None else min(count, len(source))
        at = first.views.cameras
        self.size, self.has_depth = (at.height, at.width), first.depth is not None
        n, self.encoded_size = self.n_view, (at.height // 2, at.width // 2) if half else self.size
        entry: list[tuple[Any, ...]] = [
            ("z", np.float16, (n, *latent_shape(vae, *self.encoded_size))),
            ("text", np.uint8, (n, TEXT_BYTES)),
            ("K", np.float32, (n, 3, 3)),
            ("c2w", np.float32, (n, 4, 4)),
            ("given", np.bool_, (n,)),
        ]
        if self.has_depth:
            entry.append(("depth", np.float16, (n, *self.size)))
        description = source.describe() + (", half as large" if half else "")
        super().__init__(folder, "scenes", description, vae, self.count, np.dtype(entry), BLOCK)

    def captions(self, indices: Sequence[int] | Array) -> list[tuple[str, ...]]:
        """Return one tuple of V captions for each of the scenes `indices` (N,)."""
        return [tuple(unpack(text) for text in texts) for texts in self._read(indices, "text")]

    def depth(self, indices: Sequence[int] | Array) -> Tensor:
        """Return the depth (N, V, H, W) of the scenes `indices` (N,), float32. Depth is in metres along the viewing
        axis, and 0 where unknown. Raises ValueError if the scenes have no depth."""
        if not self.has_depth:
            raise ValueError("the scenes have no depth")
        return torch.from_numpy(self._read(indices, "depth")).float()

    def condition_mask(self, indices: Sequence[int] | Array) -> Tensor:
        """Return a mask (N, V), bool, for the scenes `indices` (N,). It is True for views that are conditions."""
        return torch.from_numpy(self._read(indices, "given"))

    def cameras(self, index: int) -> Cameras:
        """Return the V cameras of the scene `index`, at the full image size."""
        (K,), c2w = self._read([index], "K"), self.c2w([index])[0]
        return Cameras(c2w, Projection(torch.from_numpy(K)), *self.size)

    def fill(self, block: int) -> None:
        """Render, encode and store one block of scenes. Entries after the last scene are zero."""
        entries = np.zeros(BLOCK, self.cache.dtype)
        for offset, index in enumerate(range(block * BLOCK, min((block + 1) * BLOCK, self.count))):
            scene, row = self.source.scene(index), entries[offset]
            row["z"] = encode(self.vae, resize(scene.views.images, *self.encoded_size)).cpu().numpy()
            row["text"] = np.stack([pack(text, TEXT_BYTES) for text in scene.captions])
            row["K"], row["c2w"] = scene.views.cameras.K.numpy(), scene.views.cameras.c2w.numpy()
            row["given"][list(scene.condition_views)] = True
            if scene.depth is not None:
                row["depth"] = scene.depth.numpy()
        self.cache.store(block, entries)


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Return the shape (C, h, w) of the latents of an image of `height` x `width` pixels. Raises ValueError unless both
    are multiples of the VAE's downsampling factor."""
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if height % factor or width % factor:
        raise ValueError(f"image size {height} x {width} is not a multiple of the VAE's downsampling factor {factor}")
    return int(vae.config["latent_channels"]), height // factor, width // factor
