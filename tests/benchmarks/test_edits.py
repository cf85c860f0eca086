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

    def launch(config: str, out: Path, *overrides: str) -> None:
        distance = table.distance * np.tan(fov / 2)
        views = render_orbit(
            next(objects), view_azimuths(table), elevation, SIZE, fov=float(fov), relative_distance=distance
        )
        out.mkdir(parents=True)
        np.savez(out / "views.npz", views=np.round(255 * views.rgb).astype(np.uint8))

    monkeypatch.setattr(edits, "launch", launch)
    monkeypatch.setattr(edits, "FOLDER", tmp_path)
    row = edits.measure(before, edit, ["steps=1"], Matte.load(edits.MATTE))
    assert float(row["changed, Lab"]) > 15 and 3 < float(row["kept, % of pixels"]) < 95
    if same:
        assert float(row["kept, Lab"]) < 1 and float(row["outline IoU"]) > 0.95
    else:
        assert float(row["kept, Lab"]) > 3 and float(row["outline IoU"]) < 0.9
