"""A growing bank of encoded scenes: every scene is rendered and encoded once, then read from the disk.

Rendering and encoding a scene costs more than a training step spends on it, so a step takes a few new scenes and
otherwise returns to old ones.  What is stored is a cache only: scene i is the same whether read or made again (always
in the same block of scenes), so a lost or foreign file changes nothing but time.  Only an edit of the toybox itself is
not noticed: delete the folder then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.cache import BlockCache, digest

from .toybox.grammar import caption
from .toybox.world import Toybox

BLOCK = 16
"""Scenes encoded together.  Fixed, because the last bits of a convolution depend on the size of its batch."""


class LatentBank:
    """Latents, captions and cameras of scenes 0 ... ``scenes`` - 1 of a toybox.

    The prior's VAE must not change while the bank is in use.  Files: ``folder``/latents.npy (float16), done.npy (which
    blocks are in it) and source.txt (of which world and VAE they are); if one does not fit, all are made anew.
    """

    def __init__(self, folder: Path, box: Toybox, prior: MVDream, scenes: int, n_view: int = 4, first: int = 0) -> None:
        self.count, self.box, self.prior, self.n_view, self.first = scenes, box, prior, n_view, first
        side = prior.image_size // prior.factor
        shape = (n_view, int(prior.vae.config["latent_channels"]), side, side)
        self.cache = BlockCache(folder, "latents", scenes, shape, np.float16, self.source(), BLOCK)

    @property
    def done(self) -> np.ndarray:
        """Which blocks are on the disk."""
        return self.cache.done

    def source(self) -> str:
        """What decides the numbers: the world, the pictures and the weights of the VAE."""
        box, size = self.box, self.prior.image_size
        world = f"seed {box.seed}, {box.split}, {box.view}, from scene {self.first}{', typical' * box.typical}"
        vae = f"VAE {digest(self.prior.vae)} x {self.prior.scaling_factor}"
        return f"{world}\n{self.n_view} views of {size} px\n{vae}\n"

    def scenes(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Latents of scenes: (N, n_view, C, h, w) float32."""
        for block in self.cache.lacking(indices):
            self.fill(block)
        return torch.from_numpy(np.stack([self.cache[i] for i in indices])).float()

    @torch.no_grad()
    def fill(self, block: int) -> None:
        """Render and encode one block."""
        start = self.first + block * BLOCK
        _, rgb, _, _ = self.box.batch(range(start, start + BLOCK), self.prior.image_size, self.n_view)
        pictures = torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1
        device = self.prior.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.prior.dtype == torch.bfloat16):
            z = self.prior.vae.encode(pictures.to(device)).latent_dist.mean * self.prior.scaling_factor
        self.cache.store(block, z.float().cpu().numpy().reshape(BLOCK, self.n_view, *z.shape[1:]))

    def words(self, index: int) -> str:
        """Caption of a scene."""
        return caption(*self.box.spec(self.first + int(index)))

    def c2w(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Cameras of scenes: (N, n_view, 4, 4)."""
        return torch.from_numpy(np.stack([self.box.cameras(self.first + int(i), self.n_view)[0] for i in indices]))
