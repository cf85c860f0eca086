import json
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2lab

from benchmarks.glb_reader import read_glb
from tests.support.ball_run import ball_run, export, register
from tests.support.errors import refused
from threedgen.config import load
from threedgen.export.palette import read_palette, to_palette
from threedgen.geometry.images import write_png


def test_palette_of_colours() -> None:
    for text, colours in {"#AABBCC, Red": "#aabbcc,#ff0000", "[teal,#fff, '#fff']": "#008080,#ffffff"}.items():
        assert read_palette(text) == colours and read_palette(colours) == colours


def test_palette_of_an_image(tmp_path: Path) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:], image[:10], image[:10, :10] = (200, 30, 40), (20, 60, 200), (250, 250, 240)
    write_png(tmp_path / "board.png", image)
    assert read_palette(str(tmp_path / "board.png")) == "#c81e28,#143cc8,#fafaf0"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write_png(tmp_path / "noise.png", noise)
    assert len(read_palette(str(tmp_path / "noise.png")).split(",")) == 8


@pytest.mark.parametrize(("text", "named"), [("brwon,red", "'brown'"), ("no.png", "no.png"), (",", "','")])
def test_other_palettes_are_refused(text: str, named: str) -> None:
    with refused(None, "palette", named):
        load("export", [f"palette={text}"])
    with refused(None, "export.palette", named):
        load("quick-toybox", ["prompt=a dog", f"export.palette={text}"])


def test_groups_take_palette_colours_and_keep_their_lightness() -> None:
    texture = np.empty((64, 64, 3), np.float32)
    ramp = np.linspace(-0.06, 0.06, 64, dtype=np.float32)[:, None]
    texture[:, :48] = np.array([0.8, 0.15, 0.12]) + ramp[..., None]
    texture[:, 48:] = np.array([0.15, 0.2, 0.8]) + ramp[..., None]
    mapped = to_palette(texture, np.ones((64, 64), bool), "#c8783c,#3c8c96,#f0e6c8")
    before, after = rgb2lab(texture), rgb2lab(mapped)
    for part, colour in ((np.s_[:, :48], (0xC8, 0x78, 0x3C)), (np.s_[:, 48:], (0x3C, 0x8C, 0x96))):
        lab = rgb2lab(np.array(colour) / 255)
        assert np.abs(after[part].mean((0, 1)) - lab).max() < 4
        assert np.corrcoef(before[part][..., 0].ravel(), after[part][..., 0].ravel())[0, 1] > 0.99
    own = to_palette(texture, np.ones((64, 64), bool), "#cc261f,#2633cc")
    assert np.abs(own - texture).max() < 0.12, "a palette of its own colours changes little"


def test_export_applies_the_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)  # a ball, red in front and blue behind
    run, name = ball_run(tmp_path / "run"), "a_ball_with_a_knob"
    assert export(run, f"out={tmp_path / 'own'}") == 0
    assert export(run, "palette=#c8783c,#3c8c96", f"out={tmp_path / 'new'}") == 0
    own, new = (read_glb((tmp_path / out / f"{name}.glb").read_bytes()) for out in ("own", "new"))
    assert all(np.array_equal(own.attributes[key], new.attributes[key]) for key in own.attributes)
    assert all(np.array_equal(own.images[key], new.images[key]) for key in own.images if key != "baseColorTexture")
    before, after = (glb.images["baseColorTexture"].reshape(-1, 3).astype(float) for glb in (own, new))
    for k, colour in ((0, (0xC8, 0x78, 0x3C)), (2, (0x3C, 0x8C, 0x96))):
        part = (before[:, k] > 240) & (before[:, 2 - k] < 15)
        assert part.sum() > 100 and np.abs(after[part] - colour).max() <= 12
    assert json.loads((tmp_path / "new" / "asset.json").read_text())["palette"] == ["#c8783c", "#3c8c96"]
