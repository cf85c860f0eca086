"""Task toybox-sheet: contact sheets of the toybox."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.errors import refused
from threedgen import cli
from threedgen.toybox.data import sheet
from threedgen.toybox.options import ToyboxSheetConfig
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, held_out


def config(folder: Path, **values: object) -> ToyboxSheetConfig:
    small = {"size": 24, "columns": 2, "nouns": ("dog", "car")}
    return ToyboxSheetConfig(task="toybox-sheet", out=str(folder), **(small | values))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def without_held_out() -> str:
    """Return a noun without held-out combinations."""
    return next(word for word in NOUNS if not held_out_pairs(word))


def held_out_pairs(word: str) -> set[tuple[str, str]]:
    details = NOUNS[word].parts + NOUNS[word].wears
    return {(c, p) for c in COLOURS for p in details if held_out(Spec(word, c, "", p))}


def test_sheet_has_a_row_per_noun_and_depends_on_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sheet.run(config(tmp_path / "a")) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "sheet.png")
    first = pixels(tmp_path / "a" / "sheet.png")
    assert first.shape[1] == 2 * (24 + 2) + 2 and first.shape[0] > 2 * (24 + 2)
    assert first.std() > 20, "an empty image"
    sheet.run(config(tmp_path / "b"))
    assert np.array_equal(first, pixels(tmp_path / "b" / "sheet.png"))
    sheet.run(config(tmp_path / "c", seed=1))
    assert not np.array_equal(first, pixels(tmp_path / "c" / "sheet.png"))


def test_more_than_twelve_nouns_need_a_second_page(tmp_path: Path) -> None:
    sheet.run(config(tmp_path, nouns=tuple(NOUNS)[:13], columns=1, size=16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet-2.png", "sheet.png"]
    assert pixels(tmp_path / "sheet.png").shape[0] > 6 * pixels(tmp_path / "sheet-2.png").shape[0]


@pytest.mark.parametrize("word", list(NOUNS))
def test_sheet_specs_keep_to_their_split_and_cover_every_part(word: str) -> None:
    train = sheet.sheet_specs(word, 120, "train", 0)
    assert len(train) == 120 and not any(held_out(spec) for spec in train)
    assert {spec.part for spec in train} == {"", *NOUNS[word].parts, *NOUNS[word].wears}
    hidden, pairs = sheet.sheet_specs(word, 200, "held-out", 0), held_out_pairs(word)
    assert all(held_out(spec) for spec in hidden) and len(hidden) == (200 if pairs else 0)
    assert {(spec.colour, spec.part) for spec in hidden} == pairs


def test_held_out_sheet_omits_nouns_without_held_out_combinations(tmp_path: Path) -> None:
    bare = without_held_out()
    sheet.run(config(tmp_path / "a", nouns=(bare, "dog"), split="held-out"))
    sheet.run(config(tmp_path / "b", nouns=("dog",), split="held-out"))
    assert np.array_equal(pixels(tmp_path / "a" / "sheet.png"), pixels(tmp_path / "b" / "sheet.png"))
    with refused("nouns", bare):
        sheet.run(config(tmp_path / "c", nouns=(bare,), split="held-out"))


def test_unknown_noun_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with refused("nouns", "'dgo'", "'dog'"):
        sheet.run(config(tmp_path, nouns=("car", "dgo")))
    assert not list(tmp_path.iterdir())


def test_sheet_from_the_command_line(tmp_path: Path) -> None:
    args = ["--config", "toybox-sheet", "size=16", "columns=1", f"out={tmp_path / 'run'}"]
    assert cli.main([*args, "nouns=[owl]"]) == 0 and (tmp_path / "run" / "sheet.png").is_file()
    assert cli.main([*args[:-1], f"out={tmp_path / 'other'}", "nouns=[owll]"]) == 2
