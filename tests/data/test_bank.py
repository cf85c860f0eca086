"""The bank of encoded pictures is a cache: whatever happens to its files, an entry is the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.support.tiny_prior import tiny_vae
from threedgen.data.bank import BLOCK, LatentBank, encode
from threedgen.data.toybox.pictures import Photographs
from threedgen.run import cache

CHOSEN = [3, 35, 4]
Entries = tuple[torch.Tensor, list[str], torch.Tensor]


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny_vae()


def entries(folder: Path, vae: AutoencoderKL, seed: int = 5, first: int = 0) -> Entries:
    """Latents, captions and cameras of the CHOSEN ones of pictures of 16 x 16 pixels."""
    bank = LatentBank(folder, Photographs(seed), vae, 16, 2 * BLOCK, first)
    return bank.latents(CHOSEN), bank.captions(CHOSEN), bank.c2w(CHOSEN)


def same(a: Entries, b: Entries) -> bool:
    return torch.equal(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2])


@pytest.fixture(scope="module")
def fresh(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    return entries(tmp_path_factory.mktemp("fresh"), vae)


def test_entries_are_the_encoded_pictures(vae: AutoencoderKL, fresh: Entries) -> None:
    pictures = Photographs(5).block(range(BLOCK), 16)
    z = encode(vae, torch.from_numpy(pictures.rgb))[3]
    assert fresh[0].shape == (3, 1, 4, 8, 8) and torch.allclose(fresh[0][0, 0], z, atol=2e-3)
    assert fresh[1][0] == pictures.captions[3] and np.array_equal(fresh[2][0, 0], pictures.c2w[3])


def test_from_the_disk_it_is_as_made_anew(
    tmp_path: Path, vae: AutoencoderKL, fresh: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(entries(tmp_path, vae), fresh)
    with monkeypatch.context() as forbid:
        forbid.setattr(Photographs, "block", None)  # can only be read
        assert same(entries(tmp_path, vae), fresh)


def test_processes_make_different_blocks(tmp_path: Path, vae: AutoencoderKL) -> None:
    banks = [LatentBank(tmp_path, Photographs(5), vae, 16, 4 * 4, block=4) for _ in range(2)]
    made = [list[int](), list[int]()]
    for bank, blocks in zip(banks, made, strict=True):
        bank.fill = blocks.append  # type: ignore[method-assign,assignment]

    def share(indices: list[int]) -> list[list[int]]:
        for number, bank in enumerate(banks):
            bank.prepare(indices, (number, 2))
        found = [blocks.copy() for blocks in made]
        for blocks in made:
            blocks.clear()
        return found

    assert share([0, 1, 5]) == [[0], [1]]
    assert share([0, 5, 11]) == [[0, 2], [1, 3]]  # a fourth, which nobody has asked for
    assert share([13]) == [[3], []]  # there is none after the last
    banks[0].kept.done[:2] = 1
    assert share([0, 6]) == [[], []] and share([7, 9]) == [[2], [3]]


def test_another_vae_source_or_start_is_noticed(tmp_path: Path, vae: AutoencoderKL, fresh: Entries) -> None:
    entries(tmp_path, vae)
    other = tiny_vae()
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(1.5)
    changed = entries(tmp_path, other)
    assert not torch.equal(changed[0], fresh[0]) and changed[1] == fresh[1]
    assert entries(tmp_path, vae, seed=6)[1] != fresh[1]
    assert entries(tmp_path, vae, first=BLOCK)[1][0] == entries(tmp_path, vae)[1][1]  # number 35 is entry 3 from there
    assert same(entries(tmp_path, vae), fresh)


def test_another_decoder_changes_nothing(tmp_path: Path, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    entries(tmp_path, vae)
    other = copy.deepcopy(vae)
    torch.nn.init.zeros_(other.decoder.conv_out.weight)
    monkeypatch.setattr("threedgen.data.bank.encode", lambda *args: pytest.fail("encoded again"))
    entries(tmp_path, other)


@pytest.mark.parametrize("name", ["entries.npy", "done.npy"])
def test_a_damaged_file_costs_time_only(tmp_path: Path, vae: AutoencoderKL, fresh: Entries, name: str) -> None:
    entries(tmp_path, vae)
    (tmp_path / name).write_bytes(b"damaged")
    assert same(entries(tmp_path, vae), fresh)


def test_pictures_are_kept_in_memory_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bank(folder: Path) -> LatentBank:
        return LatentBank(folder, Photographs(5), tiny_vae(), 16, 2 * BLOCK)

    expected = bank(tmp_path / "a").latents([1, BLOCK])
    free = {"bytes": cache.SPARE - 1}
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free["bytes"]}))
    full = bank(tmp_path / "b")
    assert torch.equal(full.latents([1]), expected[:1]) and not full.kept.done.any()
    monkeypatch.setattr(full, "fill", lambda block, fill=full.fill: fill(block) if block else 1 / 0)
    free["bytes"] *= 2
    assert torch.equal(full.latents([1, BLOCK]), expected) and full.kept.done.tolist() == [0, 1]
    assert "the disk is full" in caplog.text
