from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen import cli
from threedgen.data import photos
from threedgen.data.assets.listing import list_assets
from threedgen.data.assets.make import read_asset
from threedgen.data.coloured_mesh import fit_to_ball
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.data.make_srn import FAMILIES, SIDES, make_marked_object
from threedgen.toybox.data.subjects import make_subject, subject_nouns
from threedgen.toybox.world.grammar import NOUNS
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM, TORUS, Primitive, tessellate
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import Toybox, block, render_orbit, toybox_mesh


def test_sheets_have_a_row_per_noun_and_twelve_rows(tmp_path: Path) -> None:
    words = ["--config", "toybox-sheet", "size=16", "columns=1", f"out={tmp_path / 'run'}", "-q"]
    assert cli.main([*words, f"nouns={list(NOUNS)[:13]}"]) == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == ["sheet-2.png", "sheet.png"]
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.height > 12 * 16 and np.asarray(sheet).std() > 20
    assert cli.main([*words, "nouns=[owll]", f"out={tmp_path / 'other'}"]) == 2


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
    for asset in map(box.asset, range(12)):
        assert {solid.kind for solid in asset.primitives} == {BOX}
        assert np.linalg.norm(asset.mesh()[0], axis=1).max() < 0.8501
    first = next(Path("run").glob("000/00005*.glb"))
    before = first.stat().st_mtime_ns
    assert cli.main(words) == 0 and first.stat().st_mtime_ns == before


def test_block_is_the_bounding_box_of_a_solid() -> None:
    for kind, param in ((DOME, 0.0), (TORUS, 0.3), (FRUSTUM, 0.5), (BOX, 0.0)):
        solid = Primitive(kind, param, np.diag([1.0, 2, 3]), np.array([4.0, 5, 6]), np.ones(3), "body")
        outer, inner = (tessellate(s.kind, s.param, 32)[0] @ s.matrix.T + s.centre for s in (block(solid), solid))
        assert np.allclose(outer.min(0), inner.min(0), atol=0.02) and np.allclose(outer.max(0), inner.max(0), atol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("elevation", [0.15, 1.0])
def test_panel_is_visible_only_from_its_side(family: str, elevation: float) -> None:
    visible: dict[str, list[tuple[int, ...]]] = {side: [] for side in SIDES}
    c2w = orbit_array(np.full(4, elevation), np.deg2rad([0.0, 90.0, 180.0, 270.0]), np.full(4, 2.61))
    for index in range(6):
        asset = make_marked_object(family, np.random.default_rng(index), index)
        labels = render([asset], np.zeros(4, int), c2w, np.full(4, 0.7), 48, 1.0, 1, with_gbuffer=True).label
        for k, side in enumerate(SIDES):
            panel = asset.labels.index(f"{side} panel") + 1
            symbol = asset.labels.index(f"{side} symbol") + 1
            pixels = [int(np.isin(label, (panel, symbol)).sum()) for label in labels]
            visible[side].append((pixels[k], pixels[(k + 1) % 4], pixels[(k + 2) % 4], pixels[(k + 3) % 4]))
    for side, counts in visible.items():
        own, *others = np.array(counts).T
        assert own.mean() >= 40, (side, counts)
        assert (own >= 20).all() or elevation > 0.15, (side, counts)  # a seat hides panels from above
        assert np.mean(others) < 0.03 * own.mean(), (side, counts)


def test_panel_colours_and_shapes_are_independent() -> None:
    cars = [make_marked_object("cars", np.random.default_rng([7, index])) for index in range(60)]

    def colour(car, label: str) -> np.ndarray:
        return next(solid.colour for solid in car.primitives if solid.label == label)

    left, right = (np.array([colour(car, f"{side} panel") for car in cars]) for side in ("left", "right"))
    correlation = [np.corrcoef(left[:, k], right[:, k])[0, 1] for k in range(3)]
    assert np.abs(correlation).max() < 0.4 and left.std(0).min() > 0.2
    shapes = {tuple(s.kind for s in car.primitives if s.label == "left symbol") for car in cars}
    assert len(shapes) >= 4


def test_subjects_depend_on_seed_and_number_and_all_differ() -> None:
    subjects = [make_subject(0, number) for number in range(24)]
    assert repr(subjects[3]) == repr(make_subject(0, 3)) != repr(make_subject(1, 3))
    assert len({subject.noun for subject in subjects}) == 24
    dogs = [make_subject(0, number, "dog") for number in range(6)]
    assert {dog.noun for dog in dogs} == {"dog"} and dogs[0].caption == "a dog"
    assert len({repr(dog) for dog in dogs}) == 6
    for dog in dogs:
        left, right = render_orbit(dog, np.array([np.pi / 2, -np.pi / 2]), 0.0, 48).rgb
        assert np.abs(left - right[:, ::-1]).max(-1).mean() > 0.002


def test_subjects_of_every_noun_stay_inside_the_ball() -> None:
    for number, noun in enumerate(subject_nouns()):
        subject = make_subject(5, number, noun.word)
        vertices, *_ = subject.mesh(8)
        assert np.linalg.norm(vertices, axis=1).max() < 0.9, noun.word
        assert {"mark"} <= set(subject.labels) and subject.colour == ""
        assert all(np.isfinite(s.matrix).all() and abs(np.linalg.det(s.matrix)) > 0 for s in subject.primitives)
    assert all(noun.front for noun in subject_nouns()) and len(subject_nouns()) < len(NOUNS)


def test_task_writes_readable_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "toybox-subjects", "subjects=2", "size=40", "out=made"]) == 0
    folders = sorted(path for path in Path("made").iterdir() if path.is_dir())
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [5, 5]
    portraits = photos.read(photos.find([str(folders[0])]), 32)
    assert portraits.shape == (5, 32, 32, 3) and not any((portraits[0] == other).all() for other in portraits[1:])
    assert (np.abs(portraits[:, 16, 10:22].astype(int) - 128).max(-1) > 10).any(1).all()  # the subject is in the centre
    with Image.open("made/subjects.png") as sheet:
        assert sheet.width > 5 * 120
