import base64
import io
import json
import math
import mimetypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import example
from threedgen.export.files.glb import GLTF_AXES, splat_glb_bytes
from threedgen.export.files.splats import SplatArrays, ply_bytes
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.gaussians.field import Gaussians
from threedgen.representations.gaussians.points import PLY_AXES
from threedgen.representations.options import GaussiansConfig
from threedgen.representations.shading import Material
from threedgen.testing import seeded
from threedgen.viewer.page import ASSETS
from threedgen.viewer.report import write_report

pytestmark = pytest.mark.slow
THREE = Path(os.environ.get("THREE_JS", "node_modules/three"))
SPARK = Path(os.environ.get("SPARK_JS", "node_modules/@sparkjsdev/spark"))
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
SPARK_PAGE = """<!doctype html><style>body { margin: 0 }</style>
<script type="importmap">{ "imports": {
  "three": "/three/build/three.module.js", "three/addons/": "/three/examples/jsm/" } }</script>
<script type="module">
  import * as THREE from "three";
  import { SparkRenderer, SplatMesh } from "/spark/dist/spark.module.js";
  const { file, matrix, fov, size } = await (await fetch("/camera.json")).json();
  const renderer = new THREE.WebGLRenderer({ antialias: false });
  renderer.setSize(size, size);
  document.body.append(renderer.domElement);
  const scene = new THREE.Scene(), camera = new THREE.PerspectiveCamera(fov, 1, 0.01, 100);
  scene.background = new THREE.Color(0);
  scene.add(new SparkRenderer({ renderer, preBlurAmount: 0.3, blurAmount: 0 }));
  new THREE.Matrix4().fromArray(matrix).decompose(camera.position, camera.quaternion, camera.scale);
  const splats = new SplatMesh({ url: file });
  scene.add(splats);
  await splats.initialized;
  document.title = String(splats.numSplats ?? splats.packedSplats.numSplats);
  renderer.setAnimationLoop(() => renderer.render(scene, camera));
</script>"""


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


def render(field: Gaussians, c2w: np.ndarray) -> np.ndarray:
    """Return our render (SIZE, SIZE, 3) on black from a camera-to-world pose (4, 4) in world axes."""
    projection = Projection.perspective(torch.tensor([math.radians(FOV)]), SIZE, SIZE)
    cameras = Cameras(torch.from_numpy(c2w).float()[None], projection, SIZE, SIZE)
    with torch.no_grad():
        return field.render(cameras, SolidBackground(), Material()).rgb_fg.reshape(SIZE, SIZE, 3).numpy()


def pose(axes: np.ndarray, position: np.ndarray, to_file: np.ndarray) -> np.ndarray:
    """Return the pose (4, 4) in world axes of a camera in the axes of a file; `to_file` (3, 3) maps world to file."""
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = to_file.T @ axes, to_file.T @ position
    return c2w


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
    expected = render(field, pose(axes, np.array(found["centre"]) + found["distance"] * axes[:, 2], GLTF_AXES))
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


def test_page_with_gaussians_alone(chromium: Any, tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (run / "mesh.glb").unlink()
    (run / "gaussians.glb").write_bytes(splat_glb_bytes(SplatArrays.of(gaussians(0))))
    tab = Tab(chromium, write_report(run))
    assert (np.ptp(tab.picture(), axis=2) > 40).mean() > 0.05
    assert not tab.page.is_visible("#modes") and tab.errors == []


def test_spark_draws_the_exported_ply(launched: Any) -> None:
    if not (THREE.is_dir() and SPARK.is_dir()):
        pytest.skip("no Spark here: npm install three @sparkjsdev/spark, or set THREE_JS and SPARK_JS to their folders")
    field = gaussians(1)
    axes = np.diag([1.0, -1, -1]) @ camera(0.5, 0.26)  # y down
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, 3.2 * axes[:, 2]
    image = np.asarray(spark(launched, "gaussians.ply", ply_bytes(SplatArrays.of(field)), matrix), np.float64) / 255
    expected = render(field, pose(axes, matrix[:3, 3], PLY_AXES))
    assert expected.std() > 0.1
    assert np.abs(image - expected).mean() < 4 / 255  # it stores colours and sizes in 8 bits


def spark(browser: Any, name: str, data: bytes, matrix: np.ndarray) -> Image.Image:
    """Return the image that Spark draws of a file from a camera-to-world pose (4, 4) in the axes of the file."""
    scene = {"file": f"/{name}", "matrix": matrix.T.reshape(-1).tolist(), "fov": FOV, "size": SIZE}
    contents = {"/": SPARK_PAGE.encode(), f"/{name}": data, "/camera.json": json.dumps(scene).encode()}
    kinds = {"/": "text/html", f"/{name}": "application/octet-stream", "/camera.json": "application/json"}

    def answer(route: Any) -> None:
        path = "/" + route.request.url.partition("127.0.0.1/")[2]
        kind, _, rest = path[1:].partition("/")
        if path in contents:
            route.fulfill(body=contents[path], content_type=kinds[path])
        elif kind in ("three", "spark") and (file := {"three": THREE, "spark": SPARK}[kind] / rest).is_file():
            route.fulfill(body=file.read_bytes(), content_type=mimetypes.guess_type(file.name)[0])
        else:
            route.fulfill(status=404)

    page = browser.new_context(viewport={"width": SIZE, "height": SIZE}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.route("**/*", answer)
    page.goto("http://127.0.0.1/")
    last = None
    for _ in range(60):
        page.wait_for_timeout(500)
        assert not errors, errors
        now = Image.open(io.BytesIO(page.screenshot(timeout=PATIENCE))).convert("RGB")
        if page.title().isdigit() and np.ptp(np.asarray(now)) > 0 and last is not None and now == last:
            break
        last = now
    assert page.title() == "200"
    page.context.close()
    return now
