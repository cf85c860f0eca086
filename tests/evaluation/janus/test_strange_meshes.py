"""Meshes that tell of more than there is, or lie where nothing can be looked at, are refused in a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tests.support.errors import refused
from threedgen.data.coloured_mesh import read_mesh


def test_an_accessor_without_a_buffer(tmp_path: Path) -> None:
    accessors = [{"componentType": 5126, "type": "VEC3", "count": 300_000_000}]
    primitive = {"attributes": {"POSITION": 0}}
    tree = {"asset": {"version": "2.0"}, "accessors": accessors, "meshes": [{"primitives": [primitive]}]}
    text = json.dumps(tree | {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]}).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON")
    (tmp_path / "a.glb").write_bytes(header + text)
    with refused("", tmp_path / "a.glb", 300_000_000):
        read_mesh(tmp_path / "a.glb")


def test_coordinates_without_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1e100 0 0\nv 0 1e100 0\nf 1 2 3\n")
    with refused("", tmp_path / "a.obj", "1e+100"):
        read_mesh(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1e200 0 0\nv 0 1e200 0\nf 1 2 3\n")
    with refused("", tmp_path / "a.obj", "1e+200"):
        read_mesh(tmp_path / "a.obj")
