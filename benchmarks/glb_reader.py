"""Read a GLB for validation. The code checks the file's structure, because the file may be invalid."""

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json
from threedgen.geometry.image_file import load_image, open_image
from threedgen.run.arrays import Array

_TYPES: dict[int, str] = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_TEXTURES = ("baseColorTexture", "metallicRoughnessTexture", "normalTexture", "occlusionTexture")
_VERTEX_TARGET, _INDEX_TARGET = 34962, 34963


class GlbError(Exception):
    """Error for a file that cannot be read as a GLB."""


@dataclass
class Glb:
    """First mesh of a GLB in the convention of the file: y up, v of the UVs downwards."""

    tree: dict[str, Any]  # content of the JSON chunk
    attributes: dict[str, Array] = field(default_factory=dict)  # glTF attribute name -> (V, C)
    faces: Array = field(default_factory=lambda: np.zeros((0, 3), np.int64))  # (F, 3)
    images: dict[str, Array] = field(default_factory=dict)  # texture name in the material -> RGB (H, W, 3) uint8
    gltf_extras: dict[str, Any] = field(default_factory=dict)  # `extras` of the asset
    problems: list[str] = field(default_factory=list)  # structural problems, one sentence each


def read_glb(data: bytes) -> Glb:
    """Read the bytes of a GLB with one buffer. Minor problems are listed in the result; others raise GlbError."""
    tree, binary = _chunks(data)
    try:
        glb = Glb(tree, gltf_extras=tree.get("asset", {}).get("extras", {}))
        _check_views(glb, binary)
        primitive = tree["meshes"][0]["primitives"][0]
        if primitive.get("mode", 4) != 4:
            raise GlbError(f"the mesh does not consist of triangles: mode={primitive['mode']}")
        for name, number in primitive["attributes"].items():
            glb.attributes[name] = _accessor(glb, binary, number, _VERTEX_TARGET)
        flat = _accessor(glb, binary, primitive["indices"], _INDEX_TARGET).reshape(-1)
        if len(flat) % 3:
            raise GlbError(f"the number of indices is not a multiple of 3: {len(flat)}")
        glb.faces = flat.astype(np.int64).reshape(-1, 3)
        _check_bounds(glb, primitive["attributes"])
        if "material" in primitive:
            _read_images(glb, binary, tree["materials"][primitive["material"]])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise GlbError(f"the JSON chunk is inconsistent ({type(error).__name__}: {error})") from error
    return glb


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the parsed JSON chunk and the bytes of the binary chunk. Raises GlbError if the structure is invalid."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise GlbError("the file has no GLB header")
    version, total = struct.unpack_from("<II", data, 4)
    if version != 2 or total != len(data):
        raise GlbError(f"the header has version {version} and length {total}, but the file has {len(data)} bytes")
    offset, chunks = 12, []
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, offset)
        if length % 4 or offset + 8 + length > len(data):
            raise GlbError(f"the chunk at byte {offset} has an invalid length: {length}")
        chunks.append((kind, data[offset + 8 : offset + 8 + length]))
        offset += 8 + length
    if offset != len(data) or [kind for kind, _ in chunks] != [b"JSON", b"BIN\0"]:
        raise GlbError("the file should have one JSON chunk and one binary chunk")
    try:
        tree = parse_json(chunks[0][1])
    except ValueError as error:
        raise GlbError("the JSON chunk is not valid JSON") from error
    if not isinstance(tree, dict):
        raise GlbError("the JSON chunk is not an object")
    return tree, chunks[1][1]


def _check_views(glb: Glb, binary: bytes) -> None:
    """Add problems of the JSON chunk to `glb.problems`.

    Problems are buffer views that are not aligned, exceed the buffer or overlap, empty lists, and a scene without
    nodes.
    """
    tree, end = glb.tree, 0
    if tree["asset"].get("version") != "2.0":
        glb.problems.append("the asset version is not 2.0")
    declared = tree["buffers"][0]["byteLength"]
    if not 0 <= len(binary) - declared < 4:
        glb.problems.append(f"the buffer should have {declared} bytes, but has {len(binary)}")
    for number, view in enumerate(sorted(tree["bufferViews"], key=lambda v: v.get("byteOffset", 0))):
        start, length = view.get("byteOffset", 0), view["byteLength"]
        if start % 4 or length < 1:
            glb.problems.append(f"buffer view {number} is not aligned, or empty")
        if start < end or start + length > declared:
            glb.problems.append(f"buffer view {number} overlaps the previous one, or exceeds the buffer")
        end = max(end, start + length)
    glb.problems += [f"the list {key} is empty" for key, value in tree.items() if value == []]
    roots = tree["scenes"][tree.get("scene", 0)]["nodes"]
    if not roots or max(roots) >= len(tree["nodes"]):
        glb.problems.append("the scene has no valid node")


def _accessor(glb: Glb, binary: bytes, number: int, target: int) -> Array:
    """Return the values (count, components) of accessor `number`. Normalised integers become floats.

    `target` is the expected target of the buffer view; another target is added to `glb.problems`. Raises GlbError if
    the accessor exceeds its buffer view.
    """
    accessor = glb.tree["accessors"][number]
    view = glb.tree["bufferViews"][accessor["bufferView"]]
    kind, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTH[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    row, stride = kind.itemsize * width, view.get("byteStride", kind.itemsize * width)
    count = accessor["count"]
    if count < 1 or (count - 1) * stride + row > view["byteLength"]:
        raise GlbError(f"accessor {number} exceeds its buffer view")
    if view.get("target", target) != target or "target" not in view:
        glb.problems.append(f"the buffer view of accessor {number} has a wrong target, or none")
    raw = np.frombuffer(binary, np.uint8, (count - 1) * stride + row, start)
    rows = np.lib.stride_tricks.as_strided(raw, (count, row), (stride, 1))
    values: Array = np.ascontiguousarray(rows).view(kind).reshape(count, width)
    if accessor.get("normalized"):
        values = values / np.iinfo(kind).max
    return values


def _check_bounds(glb: Glb, attributes: dict[str, int]) -> None:
    """Raise GlbError if attributes have different lengths.

    If the declared bounds of POSITION differ from its values, this is added to `glb.problems`.
    """
    lengths = {len(values) for values in glb.attributes.values()}
    if len(lengths) > 1:
        raise GlbError(f"attributes have different lengths: {sorted(lengths)}")
    declared = glb.tree["accessors"][attributes["POSITION"]]
    positions = glb.attributes["POSITION"]
    if declared.get("min") != positions.min(axis=0).tolist() or declared.get("max") != positions.max(axis=0).tolist():
        glb.problems.append("the declared bounds of POSITION differ from its values")


def _read_images(glb: Glb, binary: bytes, material: dict[str, Any]) -> None:
    """Read the textures of a glTF material into `glb.images`."""
    slots = material | material.get("pbrMetallicRoughness", {})
    for name in _TEXTURES:
        if name not in slots:
            continue
        image = glb.tree["images"][glb.tree["textures"][slots[name]["index"]]["source"]]
        view = glb.tree["bufferViews"][image["bufferView"]]
        start = view.get("byteOffset", 0)
        try:
            data = binary[start : start + view["byteLength"]]
            with open_image(data, f"the {name}") as picture:
                if Image.MIME.get(picture.format or "") != image["mimeType"]:
                    glb.problems.append(f"the {name} is not of type {image['mimeType']}")
            glb.images[name] = np.asarray(load_image(data, f"the {name}").convert("RGB"))
        except ConfigError as error:
            raise GlbError(str(error)) from error
