"""Toybox subjects: reproducible, unlike other objects of their noun, with photos from all sides."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen import cli
from threedgen.data import photos
from threedgen.toybox.data.subjects import make_subject, render_photos, subject_nouns
from threedgen.toybox.world.grammar import NOUNS
from threedgen.toybox.world.toybox import render_orbit


def test_subjects_depend_on_seed_and_number_and_all_differ() -> None:
    subjects = [make_subject(0, number) for number in range(24)]
    assert repr(subjects[3]) == repr(make_subject(0, 3)) != repr(make_subject(1, 3))
    assert len({subject.noun for subject in subjects}) == 24
    dogs = [make_subject(0, number, "dog") for number in range(6)]
    assert {dog.noun for dog in dogs} == {"dog"} and dogs[0].caption == "a dog"
    assert len({repr(dog) for dog in dogs}) == 6


def test_subjects_of_every_noun_stay_inside_the_ball() -> None:
    for number, noun in enumerate(subject_nouns()):
        subject = make_subject(5, number, noun.word)
        vertices, *_ = subject.mesh(8)
        assert np.linalg.norm(vertices, axis=1).max() < 0.9, noun.word
        assert {"mark"} <= set(subject.labels) and subject.colour == ""
        assert all(np.isfinite(s.matrix).all() and abs(np.linalg.det(s.matrix)) > 0 for s in subject.primitives)
    assert all(noun.front for noun in subject_nouns()) and len(subject_nouns()) < len(NOUNS)


def test_left_and_right_side_of_a_subject_differ() -> None:
    for number in range(6):
        subject = make_subject(0, number, "dog")
        left, right = render_orbit(subject, np.array([np.pi / 2, -np.pi / 2]), 0.0, 48).rgb
        assert np.abs(left - right[:, ::-1]).max(-1).mean() > 0.002


def test_photos_are_reproducible_and_differ() -> None:
    subject = make_subject(0, 2)
    images = render_photos(subject, 5, 48, seed=1)
    assert images.shape == (5, 48, 48, 3) and 0 <= images.min() and images.max() <= 1
    assert np.array_equal(images, render_photos(subject, 5, 48, seed=1))
    gaps = [np.abs(a - b).mean() for k, a in enumerate(images) for b in images[:k]]
    assert min(gaps) > 0.005


def test_task_writes_readable_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "toybox-subjects", "subjects=2", "size=40", "out=made"]) == 0
    folders = sorted(path for path in Path("made").iterdir() if path.is_dir())
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [5, 5]
    portraits = photos.read(photos.find([str(folders[0])]), 32)
    assert portraits.shape == (5, 32, 32, 3)
    assert (np.abs(portraits[:, 16, 10:22].astype(int) - 128).max(-1) > 10).any(1).all()  # the subject is in the centre
    with Image.open("made/subjects.png") as sheet:
        assert sheet.width > 5 * 120
