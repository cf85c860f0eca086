import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import example
from threedgen.export.files.glb import GLTF_AXES, splat_glb_bytes
from threedgen.export.files.splats import SplatArrays
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.gaussians.field import Gaussians
from threedgen.representations.options import GaussiansConfig
from threedgen.representations.shading import Material
from threedgen.testing import seeded
from threedgen.viewer.page import ASSETS
from threedgen.viewer.report import write_report

pytestmark = pytest.mark.slow
SIZE, FOV = 128, 30.0
DRAW = """([data, view]) => {
  const gl = document.getElementById("canvas").getContext("webgl2", { antialias: false });
  const asset = readGlb(Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)));
  const scene = new SplatScene(gl, asset), size = gl.canvas.width;
  scene.build(asset);
  scene.draw({ ...view, mode: 5 }, size, size);
  const pixels = new Uint8Array(4 * size * size);
  gl.readPixels(0, 0, size, size, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  const { distance } = cameraMatrices(view, scene.centre, scene.radius, 1);
  return { pixels: Array.from(pixels), centre: scene.centre, distance };
}"""


def gaussians(degree: int) -> Gaussians:
    """Return opaque and transparent Gaussians of different shapes, directions and colours."""
    made = Gaussians(GaussiansConfig(count=200, sh_degree=degree, sphere=0.6, opacity=0.5), seeded(0))
    rng = seeded(1)
    for name, amount in (("log_scales", 0.5), ("quaternions", 1.0), ("features", 0.6), ("opacity_logits", 2.0)):
        parameter = getattr(made, name)
        parameter.data += amount * torch.randn(parameter.shape, generator=rng)
    return made


def camera(azimuth: float, elevation: float) -> np.ndarray:
    """Return the axes (3, 3) right, up and back of the viewer's camera, as columns in glTF axes; angles in radians."""
    back = np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )
    right = np.array([math.cos(azimuth), 0, -math.sin(azimuth)])
    return np.stack([right, np.cross(back, right), back], axis=1)


def render(field: Gaussians, axes: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return our render (SIZE, SIZE, 3) on black of a camera in glTF axes."""
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = GLTF_AXES.T @ axes, GLTF_AXES.T @ position
    projection = Projection.perspective(torch.tensor([math.radians(FOV)]), SIZE, SIZE)
    cameras = Cameras(torch.from_numpy(c2w).float()[None], projection, SIZE, SIZE)
    with torch.no_grad():
        return field.render(cameras, SolidBackground(), Material()).rgb_fg.reshape(SIZE, SIZE, 3).numpy()


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize(("azimuth", "elevation"), [(0.5, 0.26), (-2.0, -0.7)])
def test_viewer_draws_gaussians_as_we_do(chromium, tmp_path, degree: int, azimuth: float, elevation: float) -> None:
    field = gaussians(degree)
    scripts = [(ASSETS / name).read_text() for name in ("glb.js", "canvas.js", "scene.js", "splats.js")]
    canvas = f'<canvas id="canvas" width="{SIZE}" height="{SIZE}"></canvas>'
    (tmp_path / "page.html").write_text(f"<!doctype html>{canvas}<script>{''.join(scripts)}</script>")
    tab = Tab(chromium, tmp_path / "page.html")
    data = base64.b64encode(splat_glb_bytes(SplatArrays.of(field))).decode()
    found = tab.page.evaluate(DRAW, [data, {"azimuth": azimuth, "elevation": elevation, "zoom": 1}])
    pixels = np.array(found["pixels"], np.float64).reshape(SIZE, SIZE, 4)[::-1, :, :3] / 255
    axes = camera(azimuth, elevation)
    expected = render(field, axes, np.array(found["centre"]) + found["distance"] * axes[:, 2])
    assert expected.std() > 0.1 and tab.errors == []
    difference = np.abs(pixels - expected)
    assert difference.mean() < 1 / 255 and difference.max() < 8 / 255  # each of many layers is rounded to 8 bits


def test_report_turns_gaussians_and_mesh(chromium: Any, tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (run / "gaussians.glb").write_bytes(splat_glb_bytes(SplatArrays.of(gaussians(0))))
    tab = Tab(chromium, write_report(run))
    first = tab.picture()
    assert (np.ptp(first, axis=2) > 40).mean() > 0.05
    assert tab.page.get_by_role("button", name="Gaussians").get_attribute("aria-pressed") == "true"
    drawn = tab.drawn()
    tab.page.focus("#view")
    tab.page.keyboard.press("ArrowLeft")
    tab.drawn(drawn)
    turned = tab.picture()
    assert (np.abs(first - turned).max(axis=2) > 16).mean() > 0.02
    drawn = tab.drawn()
    tab.page.get_by_role("button", name="Lit").click()
    tab.drawn(drawn)
    assert (np.abs(tab.picture() - turned).max(axis=2) > 16).mean() > 0.02
    with tab.page.expect_download(timeout=PATIENCE) as download:
        tab.page.get_by_role("link", name="gaussians.glb").first.click()
    assert Path(download.value.path()).read_bytes() == (run / "gaussians.glb").read_bytes()
    assert tab.outside() == [] and tab.errors == []
