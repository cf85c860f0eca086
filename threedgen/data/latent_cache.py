"""Disk caches of training images that are encoded by a VAE.

Rendering and encoding an image takes about as long as a training step. So each step makes a few new images and reuses
older ones. An entry of a cache is one or several images of an object or scene with captions and cameras. Entries are
encoded in blocks of a fixed number, so that an entry is bit-identical if it is made again. The caches do not detect
changes of the rendering code: delete the folder of the caches after such a change.
"""

from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.views import resize
from threedgen.run.cache import BlockCache, digest
from threedgen.run.dtypes import autocast_bf16

from .scene_views import SceneSource

T = TypeVar("T")
BLOCK = 32
"""Entries per block. The number is constant, because the last bits of a convolution depend on the batch size."""
TEXT_BYTES = 400  # bytes stored per caption, about the 77 tokens that CLIP takes; longer captions are truncated
SCENE_BLOCK = 4  # number of scenes per block


class Captioned(NamedTuple):
    """N training examples of V views each. The V views of an example are consecutive rows.

    Attributes:
        rgb: (N * V, H, W, 3), images in [0, 1].
        captions: N captions, one per example.
        c2w: (N * V, 4, 4), camera-to-world, OpenGL axes; identity for images without a known camera.
    """

    rgb: np.ndarray
    captions: list[str]
    c2w: np.ndarray


class ExampleSource(Protocol):
    """Interface of an endless list of training examples. Equal indices always give equal examples.

    An example has one caption and `n_view` square images. A source has two methods: `describe` returns a text that
    identifies the images, and `render_examples` returns images, captions and camera poses of a range of examples.
    """

    n_view: int

    def describe(self) -> str:
        """Return one line of text that identifies the images; sources with different images return different texts.

        A disk cache stores the text, and is made anew if the source of a later run returns another one.
        """

    def render_examples(self, indices: range, size: int) -> Captioned:
        """Return images of `size` x `size` pixels, captions and camera poses of the examples `indices`."""


class EncodedCache(ABC):
    """Base class of disk caches of latents and cameras. The first use of an entry makes and stores its whole block.

    An entry is a training example with V views; the latents of a view are (C, h, w). A block is a fixed number of
    consecutive entries. A subclass implements fill(block), which makes and stores the entries of one block, given its
    number. `latents` and `c2w` return the latents and the camera poses of entries.

    Args:
        folder: folder of the cache files.
        name: name of the array file in `folder`.
        description: text with everything that determines the entries, except the VAE. A cache on disk that was made
            with another text, or with other weights of the encoder of `vae`, is not used.
        vae: diffusers AutoencoderKL, which encodes the images. Its weights must not change while the cache is in use.
        count: number of entries.
        dtype: structured numpy dtype of an entry, with the fields z (V, C, h, w), float16, for the latents, and c2w
            (V, 4, 4).
        block: number of entries per block.
    """

    def __init__(self, folder: Path, name: str, description: str, vae: Any, count: int, dtype: Any, block: int) -> None:
        self.vae = vae
        encoder = nn.ModuleList(part for part in (vae.encoder, vae.quant_conv) if part is not None)
        self.cache = BlockCache(folder, name, count, (), dtype, f"{description}\nVAE {digest(encoder)}\n", block)

    def prepare(self, indices: Sequence[int] | np.ndarray, rank: tuple[int, int] = (0, 1)) -> None:
        """Make and store each block that has one or more of the entries `indices` (N,) and is not stored yet.

        A block is a fixed number of consecutive entries, which are encoded and stored together.

        `rank` = (k, n) divides the missing blocks evenly between n processes, which all call this method with the same
        indices. k, from 0 to n - 1, is the number of the calling process, which makes only its own share. If the number
        of missing blocks is no multiple of n, some processes would be idle at the end. They make missing blocks that
        follow soon after the last needed one instead, if there are any, because later calls will probably need them.
        """
        lacking, (number, count) = self.cache.missing_blocks(indices), rank
        if lacking:
            following = range(lacking[-1] + 1, min(lacking[-1] + count, len(self.cache.done)))
            spare = -len(lacking) % count
            lacking += self.cache.missing_blocks(block * self.cache.size for block in following)[:spare]
        for block in lacking[number::count]:
            self.fill(block)

    @abstractmethod
    def fill(self, block: int) -> None:
        """Make and store all entries of block number `block`. A block is a fixed number of consecutive entries."""

    def latents(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the latents (N, V, C, h, w), float32, of the entries `indices` (N,), which have V views each.

        The latents (C, h, w) of a view are multiplied by the VAE's `scaling_factor`.
        """
        return torch.from_numpy(self._read(indices, "z")).float()

    def c2w(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the camera-to-world poses (N, V, 4, 4), OpenGL axes, of all V views of the entries `indices` (N,)."""
        return torch.from_numpy(self._read(indices, "c2w"))

    def _read(self, indices: Sequence[int] | np.ndarray, field: str) -> np.ndarray:
        self.prepare(indices)
        return np.stack([self.cache[i][field] for i in indices])


class LatentCache(EncodedCache):
    """Disk cache of the latents, captions and cameras of the first `count` examples of a source.

    The methods `latents`, `captions` and `c2w` return the data of the examples with given indices. The first use of an
    example makes and stores all examples of its block.

    Args:
        folder: folder of the cache files.
        source: training examples to cache, each with V views.
        vae: diffusers AutoencoderKL that encodes the images.
        size: side of the rendered images in pixels.
        count: number of examples to cache, the first ones of the source.
        block: number of consecutive examples that are encoded and stored together.
    """

    def __init__(
        self, folder: Path, source: ExampleSource, vae: Any, size: int, count: int, block: int = BLOCK
    ) -> None:
        self.source, self.size, self.count = source, size, count
        n, description = source.n_view, f"{source.describe()}\nfrom 0, {size} px"
        self.latent_shape = (n, *latent_shape(vae, size, size))
        """Shape (V, C, h, w) of the latents of an entry."""
        text = ("text", np.uint8, (TEXT_BYTES,))
        dtype = np.dtype([("z", np.float16, self.latent_shape), text, ("c2w", np.float32, (n, 4, 4))])
        super().__init__(folder, "entries", description, vae, count, dtype, block)

    def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return [unpack(text) for text in self._read(indices, "text")]

    def fill(self, block: int) -> None:
        count = self.cache.size
        start = block * count
        rendered = self.source.render_examples(range(start, start + count), self.size)
        entries = np.empty(count, self.cache.dtype)
        z = encode(self.vae, torch.from_numpy(rendered.rgb)).cpu().numpy()
        entries["z"], entries["c2w"] = z.reshape(entries["z"].shape), rendered.c2w.reshape(entries["c2w"].shape)
        entries["text"] = [pack(text, TEXT_BYTES) for text in rendered.captions]
        self.cache.store(block, entries)


class SceneCache(EncodedCache):
    """Disk cache of the latents, captions, cameras and depth of scenes. Depth is stored in float16 (2 mm steps at 4 m).

    The methods `latents`, `captions`, `cameras` and `depth` return the data of scenes with given indices.

    Args:
        folder: folder of the cache files.
        source: scenes to cache, each with V views of H x W pixels.
        vae: diffusers AutoencoderKL that encodes the images.
        count: number of scenes to cache, the first ones of the source; None: all.
        half: encode the images at half their height and width. Cameras and depth keep the full size.
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
        fields: list[tuple[Any, ...]] = [
            ("z", np.float16, (n, *latent_shape(vae, *self.encoded_size))),
            ("text", np.uint8, (n, TEXT_BYTES)),
            ("K", np.float32, (n, 3, 3)),
            ("c2w", np.float32, (n, 4, 4)),
            ("given", np.bool_, (n,)),
        ]
        if self.has_depth:
            fields.append(("depth", np.float16, (n, *self.size)))
        description = source.describe() + (", half as large" if half else "")
        super().__init__(folder, "scenes", description, vae, self.count, np.dtype(fields), SCENE_BLOCK)

    def captions(self, indices: Sequence[int] | np.ndarray) -> list[tuple[str, ...]]:
        """Return the captions of the scenes `indices` (N,): for each scene, a tuple with one caption per view."""
        return [tuple(unpack(text) for text in texts) for texts in self._read(indices, "text")]

    def depth(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the depth (N, V, H, W) of V views of scenes `indices` (N,): metres on the viewing axis, 0: unknown."""
        return torch.from_numpy(self._read(indices, "depth")).float()

    def condition_mask(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return a bool mask (N, V) for the V views of the scenes `indices` (N,).

        It is True for the views that are given to the network as inputs, and False for those that it generates.
        """
        return torch.from_numpy(self._read(indices, "given"))

    def cameras(self, index: int) -> Cameras:
        """Return the cameras of all views of the scene `index`.

        Their pixels are those of the full images, even if the cache encodes the images at half their size.
        """
        (K,), c2w = self._read([index], "K"), self.c2w([index])[0]
        return Cameras(c2w, Projection(torch.from_numpy(K)), *self.size)

    def fill(self, block: int) -> None:
        entries = np.zeros(SCENE_BLOCK, self.cache.dtype)  # entries after the last scene stay zero
        for offset, index in enumerate(range(block * SCENE_BLOCK, min((block + 1) * SCENE_BLOCK, self.count))):
            scene, row = self.source.scene(index), entries[offset]
            row["z"] = encode(self.vae, resize(scene.views.images, *self.encoded_size)).cpu().numpy()
            row["text"] = np.stack([pack(text, TEXT_BYTES) for text in scene.captions])
            row["K"], row["c2w"] = scene.views.cameras.K.numpy(), scene.views.cameras.c2w.numpy()
            row["given"][list(scene.condition_views)] = True
            if scene.depth is not None:
                row["depth"] = scene.depth.numpy()
        self.cache.store(block, entries)


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """Return the shape (C, h, w) of the latents of an image of `height` x `width` pixels.

    Raises ValueError unless `height` and `width` are multiples of the VAE's downsampling factor.
    """
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if height % factor or width % factor:
        raise ValueError(f"image size {height} x {width} is not a multiple of the VAE's downsampling factor {factor}")
    return int(vae.config["latent_channels"]), height // factor, width // factor


def choose_by_share(parts: Sequence[tuple[float, T]], u: float) -> tuple[float, T]:
    """Return one of the pairs (share, part), chosen with the probability `share`. The shares sum to 1.

    The choice depends only on `u`, a random number, uniform in [0, 1).
    """
    limits = list(accumulate(share for share, _ in parts[:-1]))
    return parts[bisect(limits, u)]


def available_entries(step: int, count: int, first: int, fresh: int) -> int:
    """Return the number of cache entries that exist before training step `step`: min(count, first + step * fresh).

    A training step makes a few new entries of a disk cache and reuses older ones. `first` is the number of entries that
    step 0 can reuse, `fresh` the number of new ones per step, and `count` the number of entries in the full cache.
    """
    return min(count, first + step * fresh)


def sample_entries(rng: np.random.Generator, step: int, batch: int, count: int, first: int, fresh: int) -> np.ndarray:
    """Sample the indices (batch,) of the cache entries on which training step `step` trains: new ones, then older ones.

    A disk cache has `count` entries. Step 0 can reuse the first `first` of them, and each step makes `fresh` new ones,
    so n = min(count, first + step * fresh) entries exist before the step. The result starts with the `fresh` new
    entries that follow these n, or fewer at the end of the cache. The others are uniformly random among the n. `first`
    must be at least 1, and `fresh` at most `batch`.
    """
    available = available_entries(step, count, first, fresh)
    indices = rng.integers(0, available, batch)
    new = min(fresh, count - available)
    indices[:new] = range(available, available + new)
    return indices


def pack(text: str, length: int) -> np.ndarray:
    """Encode a text as UTF-8 bytes, truncated or padded with zeros to a uint8 array (length,)."""
    return np.frombuffer(text.encode()[:length].ljust(length, b"\0"), np.uint8)


def unpack(data: np.ndarray) -> str:
    """Decode a uint8 array from `pack` to a text. If truncation cut the last character, it is dropped."""
    return bytes(data).rstrip(b"\0").decode(errors="ignore")


@torch.no_grad()
def encode(vae: Any, rgb: Tensor) -> Tensor:
    """Encode images (B, H, W, 3) in [0, 1] by a VAE.

    Return latents (B, C, h, w), float32, on the device of the VAE: the mean of the posterior, times `scaling_factor`.
    """
    with autocast_bf16(vae.device):
        x = (rgb.permute(0, 3, 1, 2) * 2 - 1).to(vae.device)
        z = torch.cat([vae.encode(part).latent_dist.mean.float() for part in x.split(16)])
    return z * float(vae.config["scaling_factor"])
