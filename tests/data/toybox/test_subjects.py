"""Toybox subjects: always the same, unlike their noun, different from all sides, with true photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen import cli
from threedgen.data import photos
from threedgen.data.toybox.grammar import NOUNS
from threedgen.data.toybox.subjects import FAR, PATTERNS, _band, _largest, draw, kinds, palette, photograph, views
from threedgen.data.toybox.world import Toybox


def same(one: object, other: object) -> bool:
    return repr(one) == repr(other)


def test_a_subject_is_always_the_same_and_no_two_are_alike() -> None:
    every = [draw(0, number) for number in range(24)]
    assert same(every[3], draw(0, 3)) and not same(every[3], draw(1, 3))
    assert len({subject.noun for subject in every}) == 24, "of different kinds"
    dogs = [draw(0, number, "dog") for number in range(6)]
    assert {dog.noun for dog in dogs} == {"dog"} and dogs[0].caption == "a dog"
    assert len({repr(dog) for dog in dogs}) == 6


def test_every_kind_can_be_one_and_stays_inside_the_ball() -> None:
    for number, noun in enumerate(kinds()):
        subject = draw(5, number, noun.word)
        vertices, *_ = subject.mesh(8)
        assert np.linalg.norm(vertices, axis=1).max() < 0.9, noun.word
        assert {"mark"} <= set(subject.labels) and subject.colour == ""
        assert all(np.isfinite(s.matrix).all() and abs(np.linalg.det(s.matrix)) > 0 for s in subject.primitives)
    assert all(noun.front for noun in kinds()) and len(kinds()) < len(NOUNS)


def test_colours_of_a_subject_can_be_told_apart() -> None:
    for seed in range(300):
        colours = palette(np.random.default_rng(seed))
        assert len(colours) == 3
        gaps = [np.linalg.norm(a - b) for k, a in enumerate(colours) for b in colours[:k]]
        assert min(gaps) > FAR - 0.3, "centres are FAR apart; each has a jitter"
        assert min(np.abs(colour - 0.5).max() for colour in colours) > 0.08, "told from the background"


def test_a_subject_is_farther_from_its_noun_than_two_of_the_noun_are() -> None:
    """In shape alone: silhouettes from the same side."""
    azimuth, level = np.array([0.4, 1.9]), np.full(2, 0.2)

    def outline(asset: object) -> np.ndarray:
        return np.abs(views(asset, azimuth, level, 48) - 0.5).max(-1) > 0.04  # type: ignore[arg-type]

    box, ordinary = Toybox(0), []
    for index in range(4000):
        if box.spec(index)[0].noun == "dog" and not box.spec(index)[0].size and not box.spec(index)[0].part:
            ordinary.append(outline(box.asset(index)))
        if len(ordinary) == 10:
            break
    unusual = [outline(draw(0, number, "dog")) for number in range(10)]
    usual = np.mean([(a ^ b).mean() for k, a in enumerate(ordinary) for b in ordinary[:k]])
    apart = np.mean([min((a ^ b).mean() for b in ordinary) for a in unusual])
    assert apart > usual


def test_the_mark_is_seen_from_one_side_only() -> None:
    """The pictures from left and right differ, also mirrored."""
    found = 0
    for number in range(6):
        left, right = views(draw(0, number, "dog"), np.array([np.pi / 2, -np.pi / 2]), np.zeros(2), 48)
        found += np.abs(left - right[:, ::-1]).max(-1).mean() > 0.002
    assert found == 6


def test_bands_lie_on_the_surface() -> None:
    """They are seen: some of their points are outside of the solid, and none of them far."""
    subject = draw(0, 1, "dog")
    (solid,) = _largest([s for s in subject.primitives if s.label == "body"], 1)
    band = _band(solid, 0.3, np.zeros(3))
    local = np.linalg.inv(solid.matrix) @ band.matrix
    reach = np.linalg.norm(np.linalg.inv(solid.matrix) @ (band.centre - solid.centre))
    assert reach == pytest.approx(0.3, abs=1e-6)
    widest = np.linalg.norm(local, axis=0)[:2].max()
    assert 0.9 < widest < 1.1
    assert len(PATTERNS) == 3


def test_photos_are_from_all_sides(tmp_path: Path) -> None:
    subject = draw(0, 2)
    pictures = photograph(subject, 5, 48, seed=1)
    assert pictures.shape == (5, 48, 48, 3) and 0 <= pictures.min() and pictures.max() <= 1
    assert np.array_equal(pictures, photograph(subject, 5, 48, seed=1))
    gaps = [np.abs(a - b).mean() for k, a in enumerate(pictures) for b in pictures[:k]]
    assert min(gaps) > 0.005


def test_the_task_writes_photos_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "toybox-subjects", "subjects=2", "photos=3", "size=40", "out=made"]) == 0
    folders = sorted(path for path in Path("made").iterdir() if path.is_dir())
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [3, 3]
    portraits = photos.read(photos.find([str(folders[0])]), 32)
    assert portraits.shape == (3, 32, 32, 3)
    assert (np.abs(portraits[:, 16, 10:22].astype(int) - 128).max(-1) > 10).any(1).all(), "the subject is in the middle"
    with Image.open("made/subjects.png") as sheet:
        assert sheet.width > 3 * 120
