"""Run folders as a generate run leaves them, made in milliseconds; and pages as a reader of HTML sees them."""

import base64
import functools
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.kept_folder import made_once
from tests.support.mesh_files import Glb
from threedgen.config import yaml_text
from threedgen.geometry.images import grid, write_mp4, write_png
from threedgen.viewer.report import write_report

CONFIG: dict[str, Any] = {
    "task": "generate", "seed": 3, "prompt": "a blue dog", "prior": {"name": "mvdream", "weights": "toybox-prior"},
    "distillation": {"name": "reconstruction"}, "field": {"name": "ngp"}, "camera": {"n_view": 4},
    "result": {"turntable": {"n_view": 8, "height": 32, "width": 32}}, "trainer": {"max_steps": 20},
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "task": "generate", "prompt": "a blue dog", "seed": 3, "ended": "2020-01-02T03:04:05+00:00", "seconds": 95.4,
    "peak_memory_mib": 1500.0, "status": "finished", "steps": 20, "triangles": 12, "vertices": 24, "notes": [],
    "seconds_of": {"prepare": 5.2, "optimise": 80.0, "export": 10.2},
    "environment": {
        "versions": {"threedgen": "0.1.0", "torch": "2.13.0"},
        "platform": "Linux", "cpu": "a processor", "cores": 2,
    },
}  # fmt: skip


def example(folder: Path, summary: dict[str, Any] | None = None, **config: Any) -> Path:
    """A finished run in `folder`; `config` replaces top-level keys, `summary` keys of the summary."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(made_once("example", _write_pictures), folder)
    (folder / "config.yaml").write_text(yaml_text.write(CONFIG | config), encoding="utf-8")
    told = SUMMARY | {"prompt": config.get("prompt", CONFIG["prompt"])} | (summary or {})
    (folder / "summary.json").write_text(json.dumps(told), encoding="utf-8")
    lines = [
        {"step": s, "loss": 1000.0 / s, "step_seconds": 0.1 + s / 100, "opacity": 0.4, "t": 900.0 - s}
        for s in range(2, 21, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _write_pictures(folder: Path) -> None:
    frames = [np.full((32, 32, 3), 0.5, np.float32) for _ in range(8)]
    for k, frame in enumerate(frames):
        frame[8:24, 2 * k + 4 : 2 * k + 14] = (0.9, k / 8, 0.1)
    write_png(folder / "views.png", grid(frames, 4))
    write_png(folder / "preview.png", grid(frames[::2], 4))
    for step in (10, 20):
        write_png(folder / "validation" / f"{step:06d}.png", grid(frames[1::2], 4))
    write_mp4(frames, folder / "turntable.mp4", fps=8)
    (folder / "mesh.glb").write_bytes(box_glb())


FACES = [(axis, sign) for axis in range(3) for sign in (1, -1)]


def box_glb(textured: bool = False, **node: Any) -> bytes:
    """A box of half sizes 0.5, 0.3, 0.7 (glTF's x, y, z), each face of a colour of its own.

    By vertex colours (unsigned bytes, three of them) or by a texture with a quarter for each of four faces; `node`
    is added to its node, such as translation=[1, 0, 0].
    """
    glb, sides = Glb(), [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    corners = [(axis, sign, np.roll([sign, sign * a, b], axis)) for axis, sign in FACES for a, b in sides]
    attributes: dict[str, int | None] = {
        "TEXCOORD_0": None,
        "POSITION": glb.accessor(np.array([corner * (0.5, 0.3, 0.7) for _, _, corner in corners], "<f4")),
        "NORMAL": glb.accessor(np.array([np.eye(3)[axis] * sign for axis, sign, _ in corners], "<f4")),
    }
    texture = None
    if textured:
        quarters = np.asarray([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]], np.uint8)
        texture = glb.texture(quarters.repeat(8, 0).repeat(8, 1))
        uv = [(0.25 + 0.5 * (n // 4 % 2), 0.25 + 0.5 * (n // 8 % 2)) for n in range(24)]
        attributes["TEXCOORD_0"] = glb.accessor(np.array(uv, "<f4"))
    else:  # rows of four bytes, the last one unused
        own, other = np.eye(3)[[axis for axis, _, _ in corners]], [[90 if sign < 0 else 30] for _, sign, _ in corners]
        colours = np.where(own, 255, other)
        attributes["COLOR_0"] = glb.accessor(np.pad(colours.astype(np.uint8), ((0, 0), (0, 1))), normalized=True)
        glb.gltf.accessors[-1].type, glb.gltf.bufferViews[-1].byteStride = "VEC3", 4
    order = np.arange(0, 24, 4, "<u2")[:, None] + np.array([0, 1, 2, 0, 2, 3], "<u2")
    glb.square(glb.material(texture), node, **attributes).indices = glb.accessor(order.reshape(-1))
    glb.gltf.materials[0].pbrMetallicRoughness.metallicFactor = 0
    return glb.to_bytes()


@functools.cache
def asset_glb(bump: tuple[float, float, float] = (0.0, 0.0, 1.0), grey: int = 90) -> bytes:
    """What the exporter writes of a grey square that looks at the page's first camera, u to its right and v up.

    bump: the normal everywhere in its normal map, in the tangent frame.
    """
    from threedgen.export.files.glb import textured_glb_bytes
    from threedgen.export.shape.mesh import TexturedMesh
    from threedgen.geometry.images import png

    azimuth, elevation = 0.5, 0.26  # START in viewer.js
    right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    points = (2 * corners[:, :1] - 1) * right + (2 * corners[:, 1:] - 1) * np.cross(back, right)
    world = [2, 0, 1]  # glTF's x, y, z are our y, z, x
    normals = np.tile(back[world], (4, 1)).astype(np.float32)
    tangents = np.tile([*right[world], 1.0], (4, 1)).astype(np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    mesh = TexturedMesh(points[:, world].astype(np.float32), faces, normals, corners, tangents)
    flat = {"base_colour": (grey, grey, grey), "normal": 128 + 127 * np.asarray(bump), "orm": (255, 255, 0)}
    return textured_glb_bytes(
        mesh, {kind: png(np.tile(np.round(value).astype(np.uint8), (8, 8, 1))) for kind, value in flat.items()}
    )


SHOWN = {"mesh": "mesh.glb", "film": "turntable.mp4", "views": "views.png", "preview": "preview.png"}
"""The elements of a report that hold a file of the run."""
VOID = ("meta", "link", "img", "input", "circle", "path")


class Page(HTMLParser):
    """A page taken apart: its tags in order, their attributes, the text in each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data

    def by_id(self, name: str) -> dict[str, str] | None:
        return next((given for _, given in self.attributes if given.get("id") == name), None)

    def decoded(self, name: str) -> bytes:
        """The content of the data URI that an element shows or links."""
        given = self.by_id(name)
        assert given is not None, name
        return decoded(given.get("src") or given["href"])

    def has_class(self, name: str) -> list[dict[str, str]]:
        return [given for _, given in self.attributes if name in given.get("class", "").split()]

    def addresses(self) -> list[str]:
        names = ("src", "href", "srcset", "action", "poster", "data", "xlink:href")
        return [given[name] for _, given in self.attributes for name in names if name in given]


def make_page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def decoded(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    assert head.startswith("data:") and head.endswith(";base64") and comma
    return base64.b64decode(body, validate=True)
