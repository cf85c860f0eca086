"""Task make-toybox-assets: files match the objects of the toybox."""

from pathlib import Path

import numpy as np
import pytest

from threedgen import cli
from threedgen.data.assets.drawing import read_asset
from threedgen.data.assets.listing import list_assets
from threedgen.data.coloured_mesh import fit_to_ball
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM, TORUS, Primitive, tessellate
from threedgen.toybox.world.toybox import Toybox, block, toybox_mesh


def test_files_render_as_the_toybox_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--config", "make-toybox-assets", "count=2", "first=5", "out=run", "-q"]
    assert cli.main(words) == 0
    found = list_assets(Path("run"), "run/captions.csv")
    assert len(found.assets) == 2 and not found.left_out
    box = Toybox(style="blocks")
    for number, asset in enumerate(found.assets, 5):
        assert asset.caption == box.asset(number).caption
        mesh = read_asset(Path("run"), asset).mesh
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
