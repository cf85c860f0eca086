"""Figures of the benchmark `edits` for edits whose errors are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import edits
from threedgen.config import load
from threedgen.guidance.matte import Matte
from threedgen.systems.generate.outputs import view_azimuths
from threedgen.toybox.world.toybox import render_orbit

SIZE = 96


@pytest.mark.parametrize("pair", [0, 1], ids=["accessory", "colour"])
@pytest.mark.parametrize("same", [True, False])
def test_only_the_part_that_should_be_kept_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: int, same: bool
) -> None:
    before, edit = edits.PAIRS[pair]
    table = load("quick-toybox", ["prompt=a dog"]).result.turntable
    elevation, fov = np.deg2rad([table.elevation, table.fov])
    objects = iter(
        [edits.toybox_pairs(before, replace(before, **edit), seed)[0][k] for k, seed in ((0, 0), (1, 3 * (not same)))]
    )
    words = []

    def launch(config: str, out: Path, *overrides: str) -> None:
        words.append([config, *overrides])
        distance = table.distance * np.tan(fov / 2)
        views = render_orbit(
            next(objects), view_azimuths(table), elevation, SIZE, fov=float(fov), relative_distance=distance
        )
        out.mkdir(parents=True)
        np.savez(out / "views.npz", views=np.round(255 * views.rgb).astype(np.uint8))

    monkeypatch.setattr(edits, "launch", launch)
    monkeypatch.setattr(edits, "FOLDER", tmp_path)
    row = edits.measure(before, edit, ["steps=1"], Matte.load(edits.MATTE))
    assert [command[0] for command in words] == ["quick-toybox", "edit-toybox"] and "steps=1" in words[1]
    assert any(word.startswith(f"edit={tmp_path}") for word in words[1])
    assert float(row["changed, Lab"]) > 15 and 3 < float(row["kept, % of pixels"]) < 95
    if same:
        assert float(row["kept, Lab"]) < 1 and float(row["outline IoU"]) > 0.95
    else:
        assert float(row["kept, Lab"]) > 3 and float(row["outline IoU"]) < 0.9
    assert edits.measure(before, edit, ["steps=1"], Matte.load(edits.MATTE)) == row and len(words) == 2
