"""Tasks toybox-sheet and make-toybox-assets: sheets and files match the objects of the toybox."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.errors import refused
from threedgen import cli
from threedgen.data.assets.make import read_asset
from threedgen.data.assets.options import list_assets
from threedgen.data.coloured_mesh import fit_to_ball
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.data import objects
from threedgen.toybox.options import ToyboxSheetConfig
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, held_out
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM, TORUS, Primitive, tessellate
from threedgen.toybox.world.toybox import Toybox, block, toybox_mesh


def config(folder: Path, **values: object) -> ToyboxSheetConfig:
    small = {"size": 24, "columns": 2, "nouns": ("dog", "car")}
    return ToyboxSheetConfig(task="toybox-sheet", out=str(folder), **(small | values))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def held_out_pairs(word: str) -> set[tuple[str, str]]:
    details = NOUNS[word].parts + NOUNS[word].wears
    return {(c, p) for c in COLOURS for p in details if held_out(Spec(word, c, "", p))}


def test_sheet_has_a_row_per_noun_and_depends_on_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert objects.run_sheet(config(tmp_path / "a")) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "sheet.png")
    first = pixels(tmp_path / "a" / "sheet.png")
    assert first.shape[1] == 2 * (24 + 2) + 2 and first.shape[0] > 2 * (24 + 2)
    assert first.std() > 20, "an empty image"
    objects.run_sheet(config(tmp_path / "b"))
    assert np.array_equal(first, pixels(tmp_path / "b" / "sheet.png"))
    objects.run_sheet(config(tmp_path / "c", seed=1))
    assert not np.array_equal(first, pixels(tmp_path / "c" / "sheet.png"))


def test_more_than_twelve_nouns_need_a_second_page(tmp_path: Path) -> None:
    objects.run_sheet(config(tmp_path, nouns=tuple(NOUNS)[:13], columns=1, size=16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet-2.png", "sheet.png"]
    assert pixels(tmp_path / "sheet.png").shape[0] > 6 * pixels(tmp_path / "sheet-2.png").shape[0]


@pytest.mark.parametrize("word", list(NOUNS))
def test_sheet_specs_keep_to_their_split_and_cover_every_part(word: str) -> None:
    train = objects.sheet_specs(word, 120, "train", 0)
    assert len(train) == 120 and not any(held_out(spec) for spec in train)
    assert {spec.part for spec in train} == {"", *NOUNS[word].parts, *NOUNS[word].wears}
    hidden, pairs = objects.sheet_specs(word, 200, "held-out", 0), held_out_pairs(word)
    assert all(held_out(spec) for spec in hidden) and len(hidden) == (200 if pairs else 0)
    assert {(spec.colour, spec.part) for spec in hidden} == pairs


def test_unknown_noun_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with refused("nouns", "'dgo'", "'dog'"):
        objects.run_sheet(config(tmp_path, nouns=("car", "dgo")))
    assert not list(tmp_path.iterdir())


def test_sheet_from_the_command_line(tmp_path: Path) -> None:
    args = ["--config", "toybox-sheet", "size=16", "columns=1", f"out={tmp_path / 'run'}"]
    assert cli.main([*args, "nouns=[owl]"]) == 0 and (tmp_path / "run" / "sheet.png").is_file()
    assert cli.main([*args[:-1], f"out={tmp_path / 'other'}", "nouns=[owll]"]) == 2


def test_files_render_as_the_toybox_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--config", "make-toybox-assets", "count=2", "first=5", "out=run", "-q"]
    assert cli.main(words) == 0
    found = list_assets(Path("run"), "run/captions.csv")
    assert len(found.assets) == 2 and not found.left_out
    box = Toybox(style="blocks")
    for number, asset in enumerate(found.assets, 5):
        assert asset.caption == box.asset(number).caption
        mesh = read_asset(Path("run"), asset)
        c2w = orbit_array(0.3, np.arange(4) * np.pi / 2, 2.6)
        ours, theirs = (m.render(c2w, 0.7, 32) for m in (mesh, fit_to_ball(toybox_mesh(box.asset(number)), 0.85)))
        assert np.abs(ours - theirs).mean() < 0.01
    first = next(Path("run").glob("000/00005*.glb"))
    before = first.stat().st_mtime_ns
    assert cli.main(words) == 0 and first.stat().st_mtime_ns == before


@pytest.mark.parametrize(("kind", "param"), [(DOME, 0.0), (TORUS, 0.3), (FRUSTUM, 0.5), (BOX, 0.0)])
def test_block_is_the_bounding_box_of_a_solid(kind: int, param: float) -> None:
    solid = Primitive(kind, param, np.diag([1.0, 2, 3]), np.array([4.0, 5, 6]), np.ones(3), "body")
    outer, inner = (tessellate(s.kind, s.param, 32)[0] @ s.matrix.T + s.centre for s in (block(solid), solid))
    assert np.allclose(outer.min(0), inner.min(0), atol=0.02) and np.allclose(outer.max(0), inner.max(0), atol=0.02)


def test_block_objects_stay_inside_the_ball() -> None:
    box = Toybox(style="blocks")
    for number in range(12):
        asset = box.asset(number)
        assert {solid.kind for solid in asset.primitives} == {BOX}
        assert np.linalg.norm(asset.mesh()[0], axis=1).max() < 0.8501
