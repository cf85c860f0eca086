import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.support.errors import refused
from tests.support.tiny_prior import tiny_vae
from threedgen.config import registry
from threedgen.config.errors import DiskFull
from threedgen.data.latent_cache import BLOCK, LatentCache, SceneCache, encode, pack, unpack
from threedgen.data.scene_views import WalkScenes
from threedgen.run import cache as block_cache
from threedgen.toybox.data.pictures import Photographs
from threedgen.toybox.options import RoomPathsConfig

INDICES = [3, 35, 4]
Entries = tuple[torch.Tensor, list[str], torch.Tensor]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny_vae()


def entries(folder: Path, vae: AutoencoderKL, seed: int = 5) -> Entries:
    """Return latents, captions and cameras of the entries INDICES, of 16 pixels."""
    cache = LatentCache(folder, Photographs(seed), vae, 16, 2 * BLOCK)
    return cache.latents(INDICES), cache.captions(INDICES), cache.c2w(INDICES)


def equal(a: Entries, b: Entries) -> bool:
    return torch.equal(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2])


@pytest.fixture(scope="module")
def expected(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    return entries(tmp_path_factory.mktemp("expected"), vae)


def test_entries_are_read_from_disk_the_second_time(tmp_path, vae, expected, monkeypatch) -> None:
    assert equal(entries(tmp_path, vae), expected)
    for name in ("entries.npy", "done.npy"):
        (tmp_path / name).write_bytes(b"damaged")
        assert equal(entries(tmp_path, vae), expected)
    monkeypatch.setattr(Photographs, "render_examples", None)
    assert equal(entries(tmp_path, vae), expected)


def test_captions_as_long_as_a_prompt_are_kept(tmp_path: Path, vae: AutoencoderKL, monkeypatch) -> None:
    text = "a wooden chair, " * 24
    rendered = Photographs(5).render_examples(range(BLOCK), 16)._replace(captions=[text] * BLOCK)
    monkeypatch.setattr(Photographs, "render_examples", lambda *args: rendered)
    assert entries(tmp_path, vae)[1] == [text] * 3


def test_prepare_gives_processes_different_blocks(tmp_path: Path, vae: AutoencoderKL) -> None:
    caches = [LatentCache(tmp_path, Photographs(5), vae, 16, 4 * 4, block=4) for _ in range(2)]
    filled = [list[int](), list[int]()]
    for cache, blocks in zip(caches, filled, strict=True):
        cache.fill = blocks.append  # type: ignore[method-assign,assignment]

    def prepare(indices: list[int]) -> list[list[int]]:
        for number, cache in enumerate(caches):
            cache.prepare(indices, (number, 2))
        result = [blocks.copy() for blocks in filled]
        for blocks in filled:
            blocks.clear()
        return result

    assert prepare([0, 1, 5]) == [[0], [1]]
    assert prepare([0, 5, 11]) == [[0, 2], [1, 3]]  # block 3 is not needed, but keeps the second process busy
    assert prepare([13]) == [[3], []]  # no block after the last
    caches[0].cache.done[:2] = 1
    assert prepare([0, 6]) == [[], []] and prepare([7, 9]) == [[2], [3]]


def test_cache_is_renewed_for_another_encoder_or_source(tmp_path: Path, vae, expected, monkeypatch) -> None:
    entries(tmp_path, vae)
    other = tiny_vae()
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.5)
    changed = entries(tmp_path, other)
    assert not torch.equal(changed[0], expected[0]) and changed[1] == expected[1]
    assert entries(tmp_path, vae, seed=6)[1] != expected[1]
    assert equal(entries(tmp_path, vae), expected)
    other = copy.deepcopy(vae)
    torch.nn.init.zeros_(other.decoder.conv_out.weight)
    monkeypatch.setattr("threedgen.data.latent_cache.encode", None)
    assert equal(entries(tmp_path, other), expected), "the decoder is not used"


def test_full_disk_is_reported(tmp_path: Path, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=block_cache.SPARE - 1))
    with refused(None, tmp_path, kind=DiskFull):
        entries(tmp_path, vae)
    monkeypatch.undo()
    assert entries(tmp_path, vae)[1], "continues after room is made"


PATHS = RoomPathsConfig(count=6, height=12, width=16, views=3, between=1.0)


def test_scenes_equal_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, vae = registry.build("scene-source", PATHS, 0, "train"), tiny_vae()
    cache, scene = SceneCache(tmp_path, source, vae), source.scene(5)
    z = cache.latents([5, 0])
    assert (cache.count, cache.size, cache.n_view) == (6, (12, 16), 3) and z.shape == (2, 3, 4, 6, 8)
    assert torch.allclose(z[0], encode(vae, scene.views.images), atol=2e-3)
    assert cache.captions([5]) == [scene.captions] and cache.condition_mask([5]).tolist() == [[True, False, True]]
    assert scene.depth is not None and (cache.depth([5])[0] - scene.depth).abs().max() < 2e-3
    cameras = cache.cameras(5)
    assert torch.equal(cameras.c2w, scene.views.cameras.c2w) and torch.equal(cameras.K, scene.views.cameras.K)
    monkeypatch.setattr(WalkScenes, "scene", lambda self, index: 1 / 0 if index else scene)
    again = SceneCache(tmp_path, source, vae)
    assert torch.equal(again.latents([5, 0]), z), "read from disk"
    with pytest.raises(ZeroDivisionError):  # another seed, so rendered again
        SceneCache(tmp_path, registry.build("scene-source", PATHS, 1, "train"), vae).latents([5])


def test_pack_truncates_long_texts() -> None:
    assert unpack(pack("a blue dog", 240)) == "a blue dog" and unpack(pack("ää", 3)) == "ä"
    assert pack("abc", 5).tolist() == [97, 98, 99, 0, 0] and pack("", 2).dtype == np.uint8
