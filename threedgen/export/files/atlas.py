"""Write many assets as one GLB: a node per asset, and one material whose textures are atlases with a tile per asset."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from threedgen import __version__
from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes
from threedgen.export.asset_folder import exported_files, read_manifest
from threedgen.export.files.glb import GLTF_AXES, textured_glb_bytes, validate
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.geometry.gltf_data import GltfData, gltf_tree
from threedgen.geometry.images import png
from threedgen.geometry.side_files import SideFiles
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic

MAX_ATLAS, MIN_TILE = 4096, 32  # largest edge of the atlas, smallest edge of a tile, in texels
MIN_GUTTER, GUTTER_SHARE = 4, 64  # width of a tile's border of repeated texels: minimum, and divisor of the tile's edge
GAP = 1.2  # distance between the centres of neighbouring assets, as a multiple of the widest asset
NEUTRAL = {"base_colour": (255, 255, 255), "normal": (128, 128, 255), "orm": (255, 255, 0)}
"""Texture name -> RGB value that fills the atlas where an asset has no such texture. An atlas is written only for names
of which some asset has a texture."""


def write_set(folders: Mapping[str, Path], path: Path) -> list[str]:
    """Write the assets of several asset folders as one GLB to `path`, unless that file has exactly these assets.

    Assets whose GLB is missing or was changed since the export (by its SHA-256 in asset.json) are left out.

    Args:
        folders: node name -> folder of an exported asset, with its GLB and asset.json.

    Returns:
        Remarks for the user, one text each: assets that are left out, the factor by which textures are made smaller,
            findings of the Khronos validator.

    Raises:
        ConfigError: if all assets are left out, or if they are too many for an atlas.
    """
    found, notes = dict[str, Path](), list[str]()
    for key, folder in folders.items():
        file = folder / next(iter(read_manifest(folder).get("files", {})), "")
        if file.suffix == ".glb" and file in exported_files(folder):
            found[key] = file
        else:
            notes.append(f"{path.name} is without {key}: its GLB is missing or was changed since the export")
    if not found:
        raise ConfigError(f"{path.name} is not written: no run has an asset")
    sums = [(key, hashlib.sha256(file.read_bytes()).hexdigest()) for key, file in found.items()]
    inputs = hashlib.sha256(json.dumps([__version__, sums]).encode()).hexdigest()
    with suppress(OSError, ValueError, LookupError, TypeError, ConfigError):  # missing, or not our file
        if gltf_tree(path.read_bytes())["asset"]["extras"]["inputs"] == inputs:
            return notes
    data, size = set_bytes({key: read_asset(file) for key, file in found.items()}, path.stem, {"inputs": inputs})
    if size < 1:
        notes.append(f"{path.name} has textures of {size:g} of their size, as an atlas has at most {MAX_ATLAS} texels")
    findings, _ = validate({path.name: data})
    write_atomic(path, data)
    return notes + [f"{name}: {text}" for name, part in findings.items() for text in part]


def read_asset(path: Path) -> tuple[TexturedMesh, dict[str, Array]]:
    """Read a GLB that `textured_glb_bytes` wrote.

    Returns the mesh in world axes (z up, front +x), and those textures that the file has, uint8 (H, W, 3), by name:
    base_colour, normal, orm (occlusion, roughness, metallic in red, green, blue).
    Raises ConfigError if a texture is damaged.
    """
    file = GltfData(read_bytes(path), SideFiles(path))
    (primitive,) = file.tree["meshes"][0]["primitives"]
    values = {name: file.accessor_array(index) for name, index in primitive["attributes"].items()}
    points, normals = (values[name] @ GLTF_AXES for name in ("POSITION", "NORMAL"))
    tangents = np.column_stack([values["TANGENT"][:, :3] @ GLTF_AXES, values["TANGENT"][:, 3]])
    uv = values["TEXCOORD_0"] * (1, -1) + (0, 1)
    faces = file.accessor_array(primitive["indices"]).reshape(-1, 3).astype(np.int32)
    mesh = TexturedMesh(points, faces, normals, uv, tangents)
    material = file.tree["materials"][primitive["material"]]
    pbr = material["pbrMetallicRoughness"]
    used = {"base_colour": pbr.get("baseColorTexture"), "normal": material.get("normalTexture")}
    used["orm"] = pbr.get("metallicRoughnessTexture")
    images = dict[str, Array]()
    for kind, info in used.items():
        if info is not None:
            index = file.tree["textures"][info["index"]]["source"]
            image = file.image(file.tree["images"][index], index)
            if image is None:
                raise ConfigError(f"{path} has a damaged texture. Export it again")
            images[kind] = image[..., :3]
    return mesh, images


def set_bytes(
    assets: Mapping[str, tuple[TexturedMesh, dict[str, Array]]], name: str = "set", gltf_extras: dict | None = None
) -> tuple[bytes, float]:
    """Return the bytes of a GLB of several assets with one material, and the factor that scaled their texture edges.

    The factor is 1, or 1/2, 1/4, ... if the textures are too large for one atlas. The assets are moved horizontally
    into rows: from left to right and from front to back, for a viewer in front of them.

    Args:
        assets: node name -> mesh in world axes (z up, front +x) and the textures of this mesh, uint8 (H, W, 3), by
            name (base_colour, normal, orm: occlusion, roughness, metallic).
        name: name of the material.
        gltf_extras: JSON data for the glTF `extras`.

    Raises:
        ConfigError: if a texture's tile in the atlas would have fewer than 32 (MIN_TILE) texels per edge.
    """
    full = [
        1 << (max(max(image.shape[:2]) for image in images.values()) - 1).bit_length() for _, images in assets.values()
    ]
    shift = 0
    while sum((side >> shift) ** 2 for side in full) > MAX_ATLAS**2:
        shift += 1
    sides = [side >> shift for side in full]
    if shift and min(sides) < MIN_TILE:
        raise ConfigError(
            f"{name}.glb is not written: {len(sides)} assets are too many for one atlas. Make smaller sets"
        )
    corners, width, height = pack_squares(sides)
    kinds = [kind for kind in NEUTRAL if any(kind in images for _, images in assets.values())]
    atlas = {kind: np.full((height, width, 3), NEUTRAL[kind], np.uint8) for kind in kinds}
    spread = GAP * max(float(np.ptp(mesh.vertices[:, :2], axis=0).max()) for mesh, _ in assets.values())
    columns, nodes = int(np.ceil(len(assets) ** 0.5)), dict[str, TexturedMesh]()
    for number, (key, (mesh, images)) in enumerate(assets.items()):
        (x, y), side = corners[number], sides[number]
        gutter = min(max(MIN_GUTTER, side // GUTTER_SHARE), side // 4)
        inner = side - 2 * gutter
        for kind, image in images.items():
            tile = np.asarray(Image.fromarray(image).resize((inner, inner), Image.Resampling.BICUBIC))
            padding = ((gutter, gutter), (gutter, gutter), (0, 0))
            atlas[kind][y : y + side, x : x + side] = np.pad(tile, padding, mode="edge")
        down = (mesh.uv * (1, -1) + (0, 1)) * inner + gutter + (x, y)  # texels, v downwards
        uv = down / (width, height) * (1, -1) + (0, 1)
        row, column = divmod(number, columns)
        nodes[key] = replace(mesh, uv=uv, offset=(-spread * row, spread * column, 0.0))
    data = textured_glb_bytes(nodes, {kind: png(image) for kind, image in atlas.items()}, name, gltf_extras)
    return data, 0.5**shift


def pack_squares(sides: list[int]) -> tuple[list[tuple[int, int]], int, int]:
    """Pack squares whose sides are powers of two into an atlas whose side is the smallest sufficient power of two.

    If the upper half of the atlas is enough, its height is half its width. Returns the top left corner (x, y) of each
    square, in the order of `sides`, and the width and height of the atlas. The squares are placed along a Z-order
    curve from the largest to the smallest, which leaves no holes.
    """
    unit, corners, cursor = min(sides), [(0, 0)] * len(sides), 0
    for index in sorted(range(len(sides)), key=lambda k: -sides[k]):
        bits = [(cursor >> 2 * k & 1, cursor >> 2 * k + 1 & 1) for k in range(16)]
        corners[index] = (
            sum(x << k for k, (x, _) in enumerate(bits)) * unit,
            sum(y << k for k, (_, y) in enumerate(bits)) * unit,
        )
        cursor += (sides[index] // unit) ** 2
    edge = 1
    while edge**2 < cursor:
        edge *= 2
    return corners, edge * unit, (edge // 2 if edge > 1 and 2 * cursor <= edge**2 else edge) * unit
