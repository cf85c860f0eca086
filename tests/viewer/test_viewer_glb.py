"""GLB reader of the pages (glb.js), executed in node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.example_run import asset_glb, box_glb

SCRIPT = Path(__file__).parents[2] / "threedgen/viewer/assets/glb.js"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
READ = """
try {
  const { parts, images } = readGlb(new Uint8Array(require("fs").readFileSync(0)));
  const lists = (part) => Object.fromEntries(
    Object.entries(part).map(([key, value]) => [key, ArrayBuffer.isView(value) ? Array.from(value) : value]));
  console.log(JSON.stringify({ parts: parts.map(lists), images: images.map((i) => [i.type, i.bytes.length]) }));
} catch (error) { console.log(JSON.stringify({ error: error.message })); }
"""


def read_glb(data: bytes) -> dict[str, Any]:
    """Return what glb.js reads from a file: parts and images, or the error."""
    script = SCRIPT.read_text(encoding="utf-8") + READ
    return json.loads(subprocess.run(["node", "-e", script], input=data, capture_output=True, check=True).stdout)


def test_box_has_outward_faces_and_vertex_colours() -> None:
    (part,) = read_glb(box_glb())["parts"]
    positions, normals = (np.reshape(part[key], (-1, 3)) for key in ("positions", "normals"))
    assert len(positions) == len(normals) == 24 and len(part["indices"]) == 36
    assert positions[:, 2].max() == pytest.approx(0.7) and positions[:, 1].min() == pytest.approx(-0.3)
    assert part["colours"][:4] == pytest.approx([1, 30 / 255, 30 / 255, 1]) and part["uvs"] is None
    faces = np.reshape(part["indices"], (-1, 3))  # counter-clockwise, seen from outside
    a, b, c = (positions[faces[:, k]] for k in range(3))
    assert ((np.cross(b - a, c - a) * normals[faces[:, 0]]).sum(axis=1) > 0).all()


def test_textures_and_node_transforms_are_read() -> None:
    read = read_glb(box_glb(textured=True, translation=[1, 0, 0], scale=[2, 1, -1]))
    (part,) = read["parts"]
    assert part["baseColour"] == {"index": 0, "amount": 1} and read["images"][0][0] == "image/png"
    assert read["images"][0][1] > 60 and part["normalMap"]["index"] == part["occlusion"]["index"] == -1
    assert part["uvs"][:2] == [0.25, 0.25] and part["colours"] is None
    assert (min(part["positions"][0::3]), max(part["positions"][0::3])) == (0, 2)
    assert part["normals"][:3] == pytest.approx([1, 0, 0])  # normal of the +x face, despite the mirror


def test_exported_asset_has_tangents_and_three_textures() -> None:
    (part,) = read_glb(asset_glb())["parts"]
    assert [part[key] for key in ("baseColour", "normalMap", "occlusion")] == [
        {"index": k, "amount": 1} for k in range(3)
    ]
    assert len(part["tangents"]) // 4 == len(part["normals"]) // 3 == len(part["uvs"]) // 2
    assert {abs(sign) for sign in part["tangents"][3::4]} == {1}


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
