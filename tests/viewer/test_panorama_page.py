"""Panorama page: camera geometry of panorama.js in node against ours, and a self-contained page."""

import json
import shutil
import subprocess
from math import pi, tan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from threedgen.geometry.images import write_png
from threedgen.geometry.panorama import rotation
from threedgen.viewer import page as viewer_page
from threedgen.viewer.panorama import write_page

SCRIPT = Path(__file__).parents[2] / "threedgen/viewer/assets/panorama.js"
node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


def evaluate(expression: str) -> Any:
    """Return the value of an expression in the page's script."""
    code = f"{SCRIPT.read_text(encoding='utf-8')}\nconsole.log(JSON.stringify({expression}))"
    return json.loads(subprocess.run(["node", "-e", code], capture_output=True, check=True).stdout)


@node
@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.7, 0.3), (-2.5, -0.4)])
def test_corner_rays_match_our_cameras(yaw: float, pitch: float) -> None:
    found = torch.tensor(evaluate(f"corners({{ yaw: {yaw}, pitch: {pitch}, fov: 1.1 }}, 1.5)"), dtype=torch.float64)
    up = tan(0.55)
    rays = torch.tensor([[x * 1.5 * up, y * up, 1] for y in (1, -1) for x in (-1, 1)], dtype=torch.float64)  # y down
    expected = rays @ rotation(yaw, pitch).T * torch.tensor([1, -1, 1])
    torch.testing.assert_close(found, expected)


@node
def test_rays_map_to_image_coordinates() -> None:
    found = evaluate("[[0, 0, 1], [1, 0, 0], [0, Math.tan(0.8), 1]].map((ray) => rayToUv(ray, 0.8))")
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.75, 0.5], [0.5, 0]], atol=1e-9)


@node
def test_views_are_clamped_to_the_image() -> None:
    max_elevation = 0.74
    for yaw, pitch, fov in [(0, 0, 1.1), (1, 9, 1.1), (2, -9, 0.4), (0, 0.3, 9), (0, 0, 0)]:
        view = evaluate(f"clampView({{ yaw: {yaw}, pitch: {pitch}, fov: {fov} }}, {max_elevation})")
        assert view["yaw"] == yaw and 0.2 <= view["fov"] <= 1.6
        corners = evaluate(f"corners({json.dumps(view)}, 2).map((ray) => rayToUv(ray, {max_elevation})[1])")
        middle = [0.5 - (view["pitch"] + s * view["fov"] / 2) / (2 * max_elevation) for s in (-1, 1)]
        assert all(-1e-9 <= v <= 1 + 1e-9 for v in (*corners, *middle))
    assert pi / 2 > evaluate("INITIAL_VIEW.fov")


def test_page_is_self_contained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "panorama.png", np.zeros((10, 40, 3), np.uint8))
    write_page(tmp_path / "panorama.html", tmp_path / "panorama.png", "a <b>room</b>")
    text = (tmp_path / "panorama.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;room&lt;/b&gt;" in text and text.count("data:image/png;base64,") == 1
    assert "default-src" in text and "://" not in text
    monkeypatch.setattr(viewer_page, "MAX_EMBEDDED_BYTES", 10)
    write_page(tmp_path / "panorama.html", tmp_path / "panorama.png", "a room")
    assert "data:image/jpeg;base64," in (tmp_path / "panorama.html").read_text(encoding="utf-8")
