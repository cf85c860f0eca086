"""A growing bank of encoded scenes: every scene is rendered and encoded once, then read from the disk.

Rendering and encoding a scene costs more than a training step spends on it, so a step takes a few new scenes and
otherwise returns to old ones.  What is stored is a cache only: scene i is the same whether read or made again (always
in the same block of scenes), so a lost or foreign file changes nothing but time.  Only an edit of the toybox itself is
not noticed: delete the folder then.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.guidance.mvdream import MVDream

from .toybox.grammar import caption
from .toybox.world import Toybox

logger = logging.getLogger(__name__)

BLOCK = 16
"""Scenes encoded together.  Fixed, because the last bits of a convolution depend on the size of its batch."""
SPARE = 100 << 20
"""Bytes of disk left to others: a write through a memory map to a full disk would kill the process (SIGBUS)."""


class LatentBank:
    """Latents, captions and cameras of scenes 0 ... ``scenes`` - 1 of a toybox.

    The prior's VAE must not change while the bank is in use.  Files: ``folder``/latents.npy (float16), done.npy (which
    blocks are in it) and source.txt (of which world and VAE they are); if one does not fit, all are made anew.
    """

    def __init__(self, folder: Path, box: Toybox, prior: MVDream, scenes: int, n_view: int = 4, first: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, scenes
        self.in_memory: dict[int, np.ndarray] = {}  # blocks for which the disk had no room
        self.box, self.prior, self.n_view, self.first = box, prior, n_view, first
        side = prior.image_size // prior.factor
        blocks = -(-scenes // BLOCK)
        shape = (blocks * BLOCK, n_view, prior.vae.config["latent_channels"], side, side)
        source, wanted = folder / "source.txt", self.source()
        latents = _existing(folder / "latents.npy", shape, np.float16)
        done = _existing(folder / "done.npy", (blocks,), np.uint8)
        if latents is None or done is None or _text(source) != wanted:
            source.unlink(missing_ok=True)  # until the files are whole
            latents = _new(folder / "latents.npy", shape, np.float16)
            done = _new(folder / "done.npy", (blocks,), np.uint8)
            source.write_text(wanted, encoding="utf-8")
        self.latents, self.done = latents, done

    def source(self) -> str:
        """What decides the numbers: the world, the pictures and the weights of the VAE."""
        weights = hashlib.blake2b(digest_size=16)
        for _, tensor in sorted(self.prior.vae.state_dict().items()):
            weights.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        box, size = self.box, self.prior.image_size
        world = f"seed {box.seed}, {box.split}, {box.view}, from scene {self.first}{', typical' * box.typical}"
        return f"{world}\n{self.n_view} views of {size} px\nVAE {weights.hexdigest()} x {self.prior.scaling_factor}\n"

    def scenes(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Latents of scenes: (N, n_view, C, h, w) float32."""
        for block in sorted({int(i) // BLOCK for i in indices}):
            if not self.done[block] and block not in self.in_memory:
                self.fill(block)
        return torch.from_numpy(np.stack([self._scene(int(i)) for i in indices])).float()

    def _scene(self, index: int) -> np.ndarray:
        block, place = divmod(index, BLOCK)
        return self.in_memory[block][place] if block in self.in_memory else self.latents[index]

    @torch.no_grad()
    def fill(self, block: int) -> None:
        """Render and encode one block."""
        start = self.first + block * BLOCK
        _, rgb, _, _ = self.box.batch(range(start, start + BLOCK), self.prior.image_size, self.n_view)
        pictures = torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1
        device = self.prior.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.prior.dtype == torch.bfloat16):
            z = self.prior.vae.encode(pictures.to(device)).latent_dist.mean * self.prior.scaling_factor
        self._store(block, z.float().cpu().numpy().reshape(BLOCK, self.n_view, *z.shape[1:]))

    def _store(self, block: int, latents: np.ndarray) -> None:
        if shutil.disk_usage(self.folder).free < SPARE:
            if not self.in_memory:
                logger.warning("%s: the disk is full; new scenes are kept in memory only", self.folder)
            self.in_memory[block] = latents.astype(np.float16)
            return
        self.latents[block * BLOCK : (block + 1) * BLOCK] = latents
        if isinstance(self.latents, np.memmap):
            self.latents.flush()  # before it is said to be there
        self.done[block] = 1

    def words(self, index: int) -> str:
        """Caption of a scene."""
        return caption(*self.box.spec(self.first + int(index)))

    def c2w(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Cameras of scenes: (N, n_view, 4, 4)."""
        return torch.from_numpy(np.stack([self.box.cameras(self.first + int(i), self.n_view)[0] for i in indices]))


def _existing(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray | None:
    """A memory-mapped array, or None if the file is missing, of another form or not readable."""
    try:
        array = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits else None


def _new(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A memory-mapped array of zeros in a file of its own, whatever was there."""
    path.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _text(path: Path) -> str:
    """The text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
