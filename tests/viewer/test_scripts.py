import json
import shutil
import subprocess
from math import pi, tan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.example_run import asset_glb, box_glb
from threedgen.export.files.glb import GLTF_AXES, splat_glb_bytes
from threedgen.export.files.splats import SplatArrays
from threedgen.geometry.images import write_png
from threedgen.geometry.panorama import rotation
from threedgen.viewer import page as viewer_page
from threedgen.viewer.page import ASSETS, write_panorama_page

node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
CANVAS = """
const handlers = {}, calls = [];
const canvas = { clientHeight: 200, setPointerCapture() {}, addEventListener: (name, f) => { handlers[name] = f; } };
globalThis.WheelEvent = { DOM_DELTA_LINE: 1 };
listen(canvas, {
  rotate: (x, y) => calls.push(["rotate", x, y]), zoom: (f) => calls.push(["zoom", f]),
  reset: () => calls.push(["reset"]),
});
const finger = (name, id, x, y) => handlers[name]({ pointerId: id, clientX: x, clientY: y });
const event = (values) => ({ preventDefault() { calls.push(["prevented"]); }, ...values });
"""
READ = """
try {
  const { parts, images, splats } = readGlb(new Uint8Array(require("fs").readFileSync(0)));
  const lists = (part) => Object.fromEntries(
    Object.entries(part).map(([key, value]) => [key, ArrayBuffer.isView(value) ? Array.from(value) : value]));
  console.log(JSON.stringify({
    parts: parts.map(lists), images: images.map((i) => [i.type, i.bytes.length]),
    splats: splats && { ...lists(splats), harmonics: splats.harmonics.map((values) => Array.from(values)) },
  }));
} catch (error) { console.log(JSON.stringify({ error: error.message })); }
"""


def run(script: str, code: str, data: bytes = b"") -> Any:
    """Run code after a script of the pages, with `data` on stdin; return the JSON that it prints."""
    text = (ASSETS / script).read_text(encoding="utf-8") + code
    return json.loads(subprocess.run(["node", "-e", text], input=data, capture_output=True, check=True).stdout)


def calls(script: str) -> list[list[object]]:
    return run("gestures.js", f"{CANVAS}{script}; console.log(JSON.stringify(calls))")


def read_glb(data: bytes) -> dict[str, Any]:
    """Return what glb.js reads from a file: parts and images, or the error."""
    return run("glb.js", READ, data)


def evaluate(expression: str) -> Any:
    """Return the value of an expression in the script of the panorama page."""
    return run("panorama.js", f"\nconsole.log(JSON.stringify({expression}))")


@node
def test_gestures_rotate_zoom_and_reset() -> None:
    down = "finger('pointerdown', 1, 10, 10); "
    assert calls(down + "finger('pointermove', 1, 15, 8)") == [["rotate", 5, -2]]
    assert calls(down + "finger('pointerup', 1, 10, 10); finger('pointermove', 1, 15, 8)") == []
    second = "finger('pointerdown', 2, 20, 10); finger('pointermove', 2, 30, 10)"
    assert calls(down + second) == [["zoom", 2]]
    assert calls("handlers.keydown(event({ key: 'ArrowLeft' }))") == [["prevented"], ["rotate", 10, 0]]
    assert calls("handlers.keydown(event({ key: 'ArrowLeft', ctrlKey: true }))") == []
    assert calls("handlers.keydown(event({ key: 'Home' }))") == [["prevented"], ["reset"]]
    (_, (name, factor)) = calls("handlers.wheel(event({ deltaY: -3, deltaMode: 1 }))")
    assert name == "zoom" and factor == pytest.approx(1.1007, abs=1e-3)  # scrolling up zooms in


@node
def test_box_has_outward_faces_and_vertex_colours() -> None:
    (part,) = read_glb(box_glb())["parts"]
    positions, normals = (np.reshape(part[key], (-1, 3)) for key in ("positions", "normals"))
    assert len(positions) == len(normals) == 24 and len(part["indices"]) == 36
    assert positions[:, 2].max() == pytest.approx(0.7) and positions[:, 1].min() == pytest.approx(-0.3)
    assert part["colours"][:4] == pytest.approx([1, 30 / 255, 30 / 255, 1]) and part["uvs"] is None
    faces = np.reshape(part["indices"], (-1, 3))  # counter-clockwise, seen from outside
    a, b, c = (positions[faces[:, k]] for k in range(3))
    assert ((np.cross(b - a, c - a) * normals[faces[:, 0]]).sum(axis=1) > 0).all()


@node
def test_textures_and_node_transforms_are_read() -> None:
    read = read_glb(box_glb(textured=True, translation=[1, 0, 0], scale=[2, 1, -1]))
    (part,) = read["parts"]
    assert part["baseColour"] == {"index": 0, "amount": 1} and read["images"][0][0] == "image/png"
    assert read["images"][0][1] > 60 and part["normalMap"]["index"] == part["occlusion"]["index"] == -1
    assert part["uvs"][:2] == [0.25, 0.25] and part["colours"] is None
    assert (min(part["positions"][0::3]), max(part["positions"][0::3])) == (0, 2)
    assert part["normals"][:3] == pytest.approx([1, 0, 0])  # normal of the +x face, despite the mirror
    (part,) = read_glb(asset_glb())["parts"]  # of an exported asset: tangents and three textures
    assert [part[key] for key in ("baseColour", "normalMap", "occlusion")] == [
        {"index": k, "amount": 1} for k in range(3)
    ]
    assert len(part["tangents"]) // 4 == len(part["normals"]) // 3 == len(part["uvs"]) // 2
    assert {abs(sign) for sign in part["tangents"][3::4]} == {1}


@node
@pytest.mark.parametrize("degree", [0, 1])
def test_gaussians_are_read(degree: int) -> None:
    rng = np.random.default_rng(0)
    means, scales, harmonics = (
        rng.normal(size=shape).astype("f4") for shape in ((5, 3), (5, 3), (5, 1 + 3 * degree, 3))
    )
    quaternions = np.tile(np.float32([1, 0, 0, 0]), (5, 1))
    made = SplatArrays(means, quaternions, np.exp(scales), np.linspace(0.1, 0.9, 5, dtype="f4"), harmonics)
    found, turned = read_glb(splat_glb_bytes(made)), made.rotated(GLTF_AXES)
    assert found["parts"] == []
    splats = {key: np.array(values) for key, values in found["splats"].items()}
    np.testing.assert_allclose(splats["positions"].reshape(-1, 3), turned.means, rtol=1e-6)
    np.testing.assert_allclose(splats["quaternions"].reshape(-1, 4), turned.quaternions[:, [1, 2, 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(splats["scales"].reshape(-1, 3), turned.scales, rtol=1e-6)
    np.testing.assert_allclose(splats["opacities"], turned.opacities, rtol=1e-6)
    np.testing.assert_allclose(splats["harmonics"].reshape(-1, 5, 3), np.moveaxis(turned.harmonics, 1, 0), rtol=1e-6)


@node
def test_invalid_files_are_distinct_errors() -> None:
    files = {
        "empty": b"",
        "no chunks": b"glTF" + bytes(30),
        "cut off": box_glb()[:-100],
        "unknown type": box_glb().replace(b"VEC3", b"VECX", 1),
    }
    errors = {name: read_glb(data)["error"] for name, data in files.items()}
    assert errors["empty"] == errors["no chunks"] and "VECX" in errors["unknown type"]
    assert len(set(errors.values())) == 3


@node
@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.7, 0.3), (-2.5, -0.4)])
def test_corner_rays_match_our_cameras(yaw: float, pitch: float) -> None:
    found = torch.tensor(evaluate(f"corners({{ yaw: {yaw}, pitch: {pitch}, fov: 1.1 }}, 1.5)"), dtype=torch.float64)
    up = tan(0.55)
    rays = torch.tensor([[x * 1.5 * up, y * up, 1] for y in (1, -1) for x in (-1, 1)], dtype=torch.float64)  # y down
    expected = rays @ rotation(yaw, pitch).T * torch.tensor([1, -1, 1])
    torch.testing.assert_close(found, expected)


@node
def test_views_are_clamped_to_the_image() -> None:
    found = evaluate("[[0, 0, 1], [1, 0, 0], [0, Math.tan(0.8), 1]].map((ray) => rayToUv(ray, 0.8))")
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.75, 0.5], [0.5, 0]], atol=1e-9)
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
    write_panorama_page(tmp_path / "panorama.html", tmp_path / "panorama.png", "a <b>room</b>")
    text = (tmp_path / "panorama.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;room&lt;/b&gt;" in text and text.count("data:image/png;base64,") == 1
    assert "default-src" in text and "://" not in text
    monkeypatch.setattr(viewer_page, "MAX_EMBEDDED_BYTES", 10)
    write_panorama_page(tmp_path / "panorama.html", tmp_path / "panorama.png", "a room")
    assert "data:image/jpeg;base64," in (tmp_path / "panorama.html").read_text(encoding="utf-8")
