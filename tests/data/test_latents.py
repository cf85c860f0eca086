"""The bank of encoded scenes is a cache: whatever happens to its files, a scene is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_prior import tiny_prior, tiny_vae
from threedgen.data.latents import BLOCK, LatentBank
from threedgen.data.toybox.grammar import caption
from threedgen.data.toybox.world import Toybox
from threedgen.guidance.priors.mvdream import MVDream

WANTED = [3, 20, 3]


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return tiny_prior()


def bank(folder: Path, prior: MVDream, scenes: int = 40, **options: int) -> LatentBank:
    """Of two views of 16 x 16 pixels."""
    return LatentBank(folder, Toybox(5), prior, scenes, n_view=2, **options)


@pytest.fixture(scope="module")
def wanted(prior: MVDream, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return bank(tmp_path_factory.mktemp("fresh"), prior).scenes(WANTED)


@pytest.fixture
def no_rendering(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, a scene can only be read."""

    def forbid(*args: object, **kwargs: object) -> None:
        raise AssertionError("rendered again")

    return lambda: monkeypatch.setattr(Toybox, "batch", forbid)


def test_latents_are_those_of_the_pictures(prior: MVDream, wanted: torch.Tensor) -> None:
    _, rgb, _, _ = Toybox(5).batch([3], 16, 2)
    with torch.no_grad():
        mean = prior.vae.encode(torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean
    assert wanted.shape == (3, 2, 4, 8, 8) and wanted.dtype == torch.float32
    assert torch.allclose(wanted[0], mean * prior.scaling_factor, atol=2e-3)
    assert torch.equal(wanted[0], wanted[2]) and not torch.equal(wanted[0], wanted[1])


def test_read_or_made_again_a_scene_is_the_same(
    tmp_path: Path, prior: MVDream, wanted: torch.Tensor, no_rendering: Callable[[], None]
) -> None:
    first = bank(tmp_path, prior)
    assert torch.equal(first.scenes([20, 3]), wanted[[1, 0]])  # in another order
    assert first.done.tolist() == [1, 1, 0]
    no_rendering()
    assert torch.equal(first.scenes(WANTED), wanted)
    assert torch.equal(bank(tmp_path, prior).scenes(WANTED), wanted), "what is on the disk was not used"
    with pytest.raises(AssertionError, match="rendered again"):
        bank(tmp_path, prior).scenes([39])


def test_the_first_scene_may_be_any(tmp_path: Path, prior: MVDream) -> None:
    late, early = bank(tmp_path / "a", prior, first=BLOCK), bank(tmp_path / "b", prior)
    assert torch.equal(late.scenes([0, 5]), early.scenes([BLOCK, BLOCK + 5]))
    assert late.words(5) == early.words(BLOCK + 5) and torch.equal(late.c2w([5]), early.c2w([BLOCK + 5]))


def test_words_and_cameras_belong_to_the_pictures(tmp_path: Path, prior: MVDream) -> None:
    box, some = Toybox(5), bank(tmp_path, prior)
    _, _, c2w, _ = box.batch([7, 9], 16, 2)
    assert np.array_equal(some.c2w([7, 9]).flatten(0, 1).numpy(), c2w)
    assert some.words(7) == caption(*box.spec(7)) == box.asset(7).caption


def lose(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def fill_with_junk(path: Path) -> None:
    path.write_bytes(b"not an array " * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickle(path: Path) -> None:
    np.save(path, np.array([{"an": "object"}], dtype=object))


def another_shape(path: Path) -> None:
    np.save(path, np.zeros((3, 2), np.float16))


def another_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


ANY = [lose, truncate, fill_with_junk, empty]
DAMAGES = [(name, damage) for name in ("latents.npy", "done.npy", "source.txt") for damage in ANY]
DAMAGES += [(name, f) for name in ("latents.npy", "done.npy") for f in (pickle, another_shape, another_type)]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_lost_or_foreign_file_changes_nothing(
    tmp_path: Path, prior: MVDream, wanted: torch.Tensor, name: str, damage: Callable[[Path], None]
) -> None:
    bank(tmp_path, prior).scenes(WANTED)
    target = tmp_path / name
    damage(target)
    assert torch.equal(bank(tmp_path, prior).scenes(WANTED), wanted)


def test_the_bank_of_another_world_or_autoencoder_is_not_used(
    tmp_path: Path, prior: MVDream, wanted: torch.Tensor
) -> None:
    bank(tmp_path, prior).scenes(WANTED)
    other = tiny_prior()
    other.vae = tiny_vae()
    with torch.no_grad():
        other.vae.quant_conv.bias += 1
    changed = bank(tmp_path, other).scenes(WANTED)
    assert not torch.allclose(changed, wanted, atol=0.1)
    world = LatentBank(tmp_path, Toybox(6), other, 40, n_view=2)
    assert not world.done.any() and not torch.equal(world.scenes(WANTED), changed)
    typical = LatentBank(tmp_path, Toybox(6, typical=True), other, 40, n_view=2)
    assert not typical.done.any() and typical.source() != world.source()
    assert torch.equal(bank(tmp_path, prior).scenes(WANTED), wanted)


def test_another_number_of_scenes_or_views_starts_anew(tmp_path: Path, prior: MVDream) -> None:
    before = bank(tmp_path, prior).scenes([3])
    more = bank(tmp_path, prior, scenes=100)
    assert len(more.done) == 7 and not more.done.any() and torch.equal(more.scenes([3]), before)
    assert LatentBank(tmp_path, Toybox(5), prior, 40, n_view=3).scenes([3]).shape[1] == 3
