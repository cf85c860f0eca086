"""The page's own reader of GLB files, in node where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.example_run import asset_glb, box_glb

ROOT = Path(__file__).parents[2]
node = pytest.mark.skipif(shutil.which("node") is None, reason="no node here")


def read_by_viewer(data: bytes) -> dict[str, Any]:
    """What glb.js makes of a file: sums and counts, or the error."""
    script = (
        (ROOT / "threedgen/viewer/assets/glb.js").read_text(encoding="utf-8")
        + """
    const all = (values) => values && Array.from(values);
    try {
      const { parts, images } = readGlb(new Uint8Array(require("fs").readFileSync(0)));
      const plain = parts.map((p) => ({
        positions: all(p.positions), normals: all(p.normals), colours: all(p.colours), uvs: all(p.uvs),
        tangents: all(p.tangents), indices: all(p.indices), factor: p.factor,
        image: p.image, relief: p.relief, openness: p.openness }));
      console.log(JSON.stringify({ parts: plain, images: images.map((i) => [i.type, i.bytes.length]) }));
    } catch (error) { console.log(JSON.stringify({ error: error.message })); }
    """
    )
    done = subprocess.run(["node", "-e", script], input=data, capture_output=True, check=True)
    return json.loads(done.stdout)


@node
def test_the_viewer_reads_what_is_in_the_file() -> None:
    (part,) = read_by_viewer(box_glb())["parts"]
    assert len(part["positions"]) == len(part["normals"]) == 72 and len(part["indices"]) == 36
    assert max(part["positions"][2::3]) == pytest.approx(0.7) and min(part["positions"][1::3]) == pytest.approx(-0.3)
    assert part["colours"][:4] == pytest.approx([1, 30 / 255, 30 / 255, 1]) and part["uvs"] is None
    for k in range(0, 36, 3):  # corners run counter-clockwise, seen from where the normal points
        a, b, c = (part["positions"][3 * i : 3 * i + 3] for i in part["indices"][k : k + 3])
        u, v = [q - p for p, q in zip(a, b, strict=True)], [q - p for p, q in zip(a, c, strict=True)]
        across = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
        normal = part["normals"][3 * part["indices"][k] : 3 * part["indices"][k] + 3]
        assert sum(p * q for p, q in zip(across, normal, strict=True)) > 0


@node
def test_the_viewer_reads_textures_and_nodes() -> None:
    read = read_by_viewer(box_glb(textured=True, translation=[1, 0, 0], scale=[2, 1, -1]))
    (part,) = read["parts"]
    assert part["image"] == {"index": 0, "amount": 1} and read["images"][0] == ["image/png", read["images"][0][1]]
    assert read["images"][0][1] > 60 and part["relief"]["index"] == part["openness"]["index"] == -1
    assert part["uvs"][:2] == [0.25, 0.25] and part["colours"] is None
    assert (min(part["positions"][0::3]), max(part["positions"][0::3])) == (0, 2)
    assert part["normals"][:3] == pytest.approx([1, 0, 0])  # of the face at +x, in spite of the mirror


@node
def test_the_viewer_reads_the_maps_of_an_asset() -> None:
    """What the exporter writes: tangents, and three maps on one set of texture coordinates."""
    (part,) = read_by_viewer(asset_glb())["parts"]
    assert [part[key] for key in ("image", "relief", "openness")] == [{"index": k, "amount": 1} for k in range(3)]
    assert len(part["tangents"]) // 4 == len(part["normals"]) // 3 == len(part["uvs"]) // 2
    assert {abs(sign) for sign in part["tangents"][3::4]} == {1}


@node
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no GLB"),
        (b"glTF" + bytes(30), "no GLB"),
        (box_glb()[:-100], "its end is missing"),
        (box_glb().replace(b"VEC3", b"VECX", 1), "unknown kind"),
    ],
)
def test_the_viewer_says_what_is_wrong_with_a_file(data: bytes, said: str) -> None:
    assert said in read_by_viewer(data)["error"]
