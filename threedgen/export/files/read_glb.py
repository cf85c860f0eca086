"""Reads a GLB back, distrusting it: what a checker needs, and what is wrong with the structure."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json
from threedgen.geometry.picture_file import open_picture, read_picture
from threedgen.run.arrays import Array

_TYPES: dict[int, str] = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_TEXTURES = ("baseColorTexture", "metallicRoughnessTexture", "normalTexture", "occlusionTexture")
_VERTEX_TARGET, _INDEX_TARGET = 34962, 34963


class Broken(Exception):
    """The bytes are no GLB that could be looked into."""


@dataclass
class Glb:
    """The first mesh of a file, as stored: y up, v downwards.

    attributes: name -> (V, C); faces (F, 3); images: name of the texture in the material -> (H, W, 3) uint8;
    gltf_extras: of the asset; problems: faults of the structure, a sentence each.
    """

    tree: dict[str, Any]
    attributes: dict[str, Array] = field(default_factory=dict)
    faces: Array = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    images: dict[str, Array] = field(default_factory=dict)
    gltf_extras: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_glb(data: bytes) -> Glb:
    """The content of a GLB of one buffer. Raises Broken where nothing can be read; lesser faults are listed."""
    tree, binary = _chunks(data)
    try:
        glb = Glb(tree, gltf_extras=tree.get("asset", {}).get("extras", {}))
        _check_views(glb, binary)
        primitive = tree["meshes"][0]["primitives"][0]
        if primitive.get("mode", 4) != 4:
            raise Broken("the mesh is not made of triangles")
        for name, number in primitive["attributes"].items():
            glb.attributes[name] = _accessor(glb, binary, number, _VERTEX_TARGET)
        flat = _accessor(glb, binary, primitive["indices"], _INDEX_TARGET).reshape(-1)
        if len(flat) % 3:
            raise Broken(f"{len(flat)} indices are no whole number of triangles")
        glb.faces = flat.astype(np.int64).reshape(-1, 3)
        _check_bounds(glb, primitive["attributes"])
        if "material" in primitive:
            _read_images(glb, binary, tree["materials"][primitive["material"]])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise Broken(f"the description does not fit together ({type(error).__name__}: {error})") from error
    return glb


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise Broken("the file does not begin as a GLB")
    version, total = struct.unpack_from("<II", data, 4)
    if version != 2 or total != len(data):
        raise Broken(f"the header tells version {version} and {total} bytes, but there are {len(data)}")
    place, found = 12, []
    while place + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, place)
        if length % 4 or place + 8 + length > len(data):
            raise Broken(f"the chunk at byte {place} has {length} bytes, which do not fit")
        found.append((kind, data[place + 8 : place + 8 + length]))
        place += 8 + length
    if place != len(data) or [kind for kind, _ in found] != [b"JSON", b"BIN\0"]:
        raise Broken("there should be one JSON chunk and one binary chunk")
    try:
        tree = parse_json(found[0][1])
    except ValueError as error:
        raise Broken("the description is no JSON") from error
    if not isinstance(tree, dict):
        raise Broken("the description is no JSON object")
    return tree, found[1][1]


def _check_views(glb: Glb, binary: bytes) -> None:
    """Views within the buffer, aligned, not one over the other; no empty list."""
    tree, end = glb.tree, 0
    if tree["asset"].get("version") != "2.0":
        glb.problems.append("the asset is not of version 2.0")
    declared = tree["buffers"][0]["byteLength"]
    if not 0 <= len(binary) - declared < 4:
        glb.problems.append(f"the buffer should have {declared} bytes, but has {len(binary)}")
    for number, view in enumerate(sorted(tree["bufferViews"], key=lambda v: v.get("byteOffset", 0))):
        start, length = view.get("byteOffset", 0), view["byteLength"]
        if start % 4 or length < 1:
            glb.problems.append(f"view {number} of the buffer is not aligned, or empty")
        if start < end or start + length > declared:
            glb.problems.append(f"view {number} of the buffer overlaps the one before, or leaves the buffer")
        end = max(end, start + length)
    glb.problems += [f"the list {key} is empty" for key, value in tree.items() if value == []]
    roots = tree["scenes"][tree.get("scene", 0)]["nodes"]
    if not roots or max(roots) >= len(tree["nodes"]):
        glb.problems.append("the scene shows nothing")


def _accessor(glb: Glb, binary: bytes, number: int, target: int) -> Array:
    """The values of an accessor, (count, width)."""
    accessor = glb.tree["accessors"][number]
    view = glb.tree["bufferViews"][accessor["bufferView"]]
    kind, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTH[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    row, stride = kind.itemsize * width, view.get("byteStride", kind.itemsize * width)
    count = accessor["count"]
    if count < 1 or (count - 1) * stride + row > view["byteLength"]:
        raise Broken(f"accessor {number} reads beyond its view")
    if view.get("target", target) != target or "target" not in view:
        glb.problems.append(f"accessor {number} has a view with a wrong target, or none")
    raw = np.frombuffer(binary, np.uint8, (count - 1) * stride + row, start)
    rows = np.lib.stride_tricks.as_strided(raw, (count, row), (stride, 1))
    values: Array = np.ascontiguousarray(rows).view(kind).reshape(count, width)
    if accessor.get("normalized"):
        values = values / np.iinfo(kind).max
    return values


def _check_bounds(glb: Glb, attributes: dict[str, int]) -> None:
    """Attributes as long as each other; POSITION with its exact bounds."""
    lengths = {len(values) for values in glb.attributes.values()}
    if len(lengths) > 1:
        raise Broken(f"attributes of different lengths: {sorted(lengths)}")
    declared = glb.tree["accessors"][attributes["POSITION"]]
    place = glb.attributes["POSITION"]
    if declared.get("min") != place.min(axis=0).tolist() or declared.get("max") != place.max(axis=0).tolist():
        glb.problems.append("the bounds of POSITION are not those of its values")


def _read_images(glb: Glb, binary: bytes, material: dict[str, Any]) -> None:
    """The pictures that the material reads."""
    places = material | material.get("pbrMetallicRoughness", {})
    for name in _TEXTURES:
        if name not in places:
            continue
        image = glb.tree["images"][glb.tree["textures"][places[name]["index"]]["source"]]
        view = glb.tree["bufferViews"][image["bufferView"]]
        start = view.get("byteOffset", 0)
        try:
            data = binary[start : start + view["byteLength"]]
            with open_picture(data, f"the {name}") as picture:
                if Image.MIME.get(picture.format or "") != image["mimeType"]:
                    glb.problems.append(f"the {name} is no {image['mimeType']}")
            glb.images[name] = np.asarray(read_picture(data, f"the {name}").convert("RGB"))
        except ConfigError as error:
            raise Broken(str(error)) from error
