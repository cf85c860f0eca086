"""The contact sheets of the toybox: `threedgen --config toybox-sheet`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen import cli
from threedgen.config import ConfigError
from threedgen.data.toybox import sheet
from threedgen.data.toybox.grammar import COLOURS, NOUNS, Spec, held_out
from threedgen.data.toybox.options import ToyboxSheetConfig


def config(folder: Path, **values: object) -> ToyboxSheetConfig:
    small = {"size": 24, "columns": 2, "nouns": ("dog", "car")}
    return ToyboxSheetConfig(task="toybox-sheet", out=str(folder), **(small | values))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def without_held_out() -> str:
    """A noun of which every combination is trained on."""

    def any_held_out(word: str) -> bool:
        said = NOUNS[word].parts + NOUNS[word].wears
        return any(held_out(Spec(word, colour, "", part)) for colour in COLOURS for part in said)

    return next(word for word in NOUNS if not any_held_out(word))


def test_a_row_for_each_noun_and_always_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sheet.run(config(tmp_path / "a")) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "sheet.png")
    first = pixels(tmp_path / "a" / "sheet.png")
    assert first.shape[1] == 2 * (24 + 2) + 2 and first.shape[0] > 2 * (24 + 2)
    assert first.std() > 20, "an empty picture"
    sheet.run(config(tmp_path / "b"))
    assert np.array_equal(first, pixels(tmp_path / "b" / "sheet.png"))
    sheet.run(config(tmp_path / "c", seed=1))
    assert not np.array_equal(first, pixels(tmp_path / "c" / "sheet.png"))


def test_more_than_twelve_nouns_take_more_pages(tmp_path: Path) -> None:
    sheet.run(config(tmp_path, nouns=tuple(NOUNS)[:13], columns=1, size=16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet-2.png", "sheet.png"]
    assert pixels(tmp_path / "sheet.png").shape[0] > 6 * pixels(tmp_path / "sheet-2.png").shape[0]


@pytest.mark.parametrize("word", list(NOUNS))
def test_samples_keep_to_their_split_and_show_every_part(word: str) -> None:
    entry = NOUNS[word]
    said = entry.parts + entry.wears
    train = sheet.samples(word, 120, "train", 0)
    assert len(train) == 120 and not any(held_out(spec) for spec in train)
    assert {spec.part for spec in train} == {"", *said}
    hidden = sheet.samples(word, 8, "held-out", 0)
    every = [(c, p) for c in COLOURS for p in said if held_out(Spec(word, c, "", p))]
    assert all(held_out(spec) for spec in hidden) and len(hidden) == (8 if every else 0)
    assert {(spec.colour, spec.part) for spec in sheet.samples(word, 200, "held-out", 0)} == set(every)


def test_the_held_out_split_leaves_out_nouns_without_one(tmp_path: Path) -> None:
    bare = without_held_out()
    sheet.run(config(tmp_path / "a", nouns=(bare, "dog"), split="held-out"))
    sheet.run(config(tmp_path / "b", nouns=("dog",), split="held-out"))
    assert np.array_equal(pixels(tmp_path / "a" / "sheet.png"), pixels(tmp_path / "b" / "sheet.png"))
    with pytest.raises(ConfigError, match=f"no combination of {bare} is held out"):
        sheet.run(config(tmp_path / "c", nouns=(bare,), split="held-out"))


def test_an_unknown_noun_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nouns: the toybox has no 'dgo'.*'dog'"):
        sheet.run(config(tmp_path, nouns=("car", "dgo")))
    assert not list(tmp_path.iterdir())


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "toybox-sheet", "size=16", "columns=1", f"out={tmp_path / 'run'}"]
    assert cli.main([*words, "nouns=[owl]"]) == 0
    assert (tmp_path / "run" / "sheet.png").is_file()
    capsys.readouterr()
    words[-1] = f"out={tmp_path / 'other'}"
    assert cli.main([*words, "nouns=[owll]"]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "'owll'" in said and "'owl'" in said
