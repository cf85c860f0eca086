"""LatentBank: entries equal the encoded images, whatever happens to the cache files."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.support.tiny_prior import tiny_vae
from threedgen.data.bank import BLOCK, LatentBank, encode
from threedgen.run import cache
from threedgen.toybox.data.pictures import Photographs

INDICES = [3, 35, 4]
Entries = tuple[torch.Tensor, list[str], torch.Tensor]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny_vae()


def entries(folder: Path, vae: AutoencoderKL, seed: int = 5) -> Entries:
    """Return latents, captions and cameras of the entries INDICES, of 16 pixels."""
    bank = LatentBank(folder, Photographs(seed), vae, 16, 2 * BLOCK)
    return bank.latents(INDICES), bank.captions(INDICES), bank.c2w(INDICES)


def equal(a: Entries, b: Entries) -> bool:
    return torch.equal(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2])


@pytest.fixture(scope="module")
def expected(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    return entries(tmp_path_factory.mktemp("expected"), vae)


def test_entries_are_the_encoded_images(vae: AutoencoderKL, expected: Entries) -> None:
    block = Photographs(5).block(range(BLOCK), 16)
    z = encode(vae, torch.from_numpy(block.rgb))[3]
    assert expected[0].shape == (3, 1, 4, 8, 8) and torch.allclose(expected[0][0, 0], z, atol=2e-3)
    assert expected[1][0] == block.captions[3] and np.array_equal(expected[2][0, 0], block.c2w[3])


def test_entries_are_read_from_disk_the_second_time(
    tmp_path: Path, vae: AutoencoderKL, expected: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert equal(entries(tmp_path, vae), expected)
    monkeypatch.setattr(Photographs, "block", None)
    assert equal(entries(tmp_path, vae), expected)


def test_prepare_gives_processes_different_blocks(tmp_path: Path, vae: AutoencoderKL) -> None:
    banks = [LatentBank(tmp_path, Photographs(5), vae, 16, 4 * 4, block=4) for _ in range(2)]
    filled = [list[int](), list[int]()]
    for bank, blocks in zip(banks, filled, strict=True):
        bank.fill = blocks.append  # type: ignore[method-assign,assignment]

    def prepare(indices: list[int]) -> list[list[int]]:
        for number, bank in enumerate(banks):
            bank.prepare(indices, (number, 2))
        result = [blocks.copy() for blocks in filled]
        for blocks in filled:
            blocks.clear()
        return result

    assert prepare([0, 1, 5]) == [[0], [1]]
    assert prepare([0, 5, 11]) == [[0, 2], [1, 3]]  # block 3 is not needed, but keeps the second process busy
    assert prepare([13]) == [[3], []]  # no block after the last
    banks[0].cache.done[:2] = 1
    assert prepare([0, 6]) == [[], []] and prepare([7, 9]) == [[2], [3]]


def test_cache_is_renewed_for_another_encoder_or_source(tmp_path: Path, vae: AutoencoderKL, expected: Entries) -> None:
    entries(tmp_path, vae)
    other = tiny_vae()
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.5)
    changed = entries(tmp_path, other)
    assert not torch.equal(changed[0], expected[0]) and changed[1] == expected[1]
    assert entries(tmp_path, vae, seed=6)[1] != expected[1]
    assert equal(entries(tmp_path, vae), expected)


def test_cache_does_not_depend_on_the_decoder(
    tmp_path: Path, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries(tmp_path, vae)
    other = copy.deepcopy(vae)
    torch.nn.init.zeros_(other.decoder.conv_out.weight)
    monkeypatch.setattr("threedgen.data.bank.encode", lambda *args: pytest.fail("encoded again"))
    entries(tmp_path, other)


@pytest.mark.parametrize("name", ["entries.npy", "done.npy"])
def test_damaged_cache_files_are_made_again(tmp_path: Path, vae: AutoencoderKL, expected: Entries, name: str) -> None:
    entries(tmp_path, vae)
    (tmp_path / name).write_bytes(b"damaged")
    assert equal(entries(tmp_path, vae), expected)


def test_entries_stay_in_memory_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bank(folder: Path) -> LatentBank:
        return LatentBank(folder, Photographs(5), tiny_vae(), 16, 2 * BLOCK)

    expected = bank(tmp_path / "a").latents([1, BLOCK])
    free = {"bytes": cache.SPARE - 1}
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free["bytes"]}))
    full = bank(tmp_path / "b")
    assert torch.equal(full.latents([1]), expected[:1]) and not full.cache.done.any()
    monkeypatch.setattr(full, "fill", lambda block, fill=full.fill: fill(block) if block else 1 / 0)
    free["bytes"] *= 2
    assert torch.equal(full.latents([1, BLOCK]), expected) and full.cache.done.tolist() == [0, 1]
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(tmp_path / "b") in caplog.text
