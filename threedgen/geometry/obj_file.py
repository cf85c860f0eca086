"""Reader of OBJ meshes with their MTL files and textures."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.polygons import triangulate
from threedgen.geometry.side_files import MAX_MTL_BYTES, SideFiles, decode, encoding
from threedgen.geometry.submesh import Submesh, TooLarge, Wrap, check_count, check_text, in_unit_range
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array

_NUMBER = r"[-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?(?=\s)"  # possessive: in linear time
_OPTION = re.compile(
    rf"\s*-(?:(?P<name>[sot])(?P<numbers>(?:\s+{_NUMBER}){{1,3}})|mm(?:\s+{_NUMBER}){{2}}"
    r"|(?:(?P<clamp>clamp\s+on)|(?:blendu|blendv|cc|clamp|colorspace|texres|bm|boost|imfchan|type)\s+\S+)(?=\s))",
    re.IGNORECASE,
)
"""Pattern of one option in an MTL file, such as "-s 2 2 1" in "map_Kd -s 2 2 1 wood.png"."""


RAGGED = 100_000  # number of lines of different lengths that are parsed together
_POLYPAINT = re.compile(r"(?:[0-9a-fA-F]{8})+")


@dataclass
class Material:
    """Material of an MTL file: colour and emitted colour (sRGB in [0, 1]), opacity, textures, and the file's folder.

    `maps` has the textures: key of a line, such as "map_kd" -> rest of the line (options and file name).
    """

    colour: tuple[float, ...] = (1.0, 1.0, 1.0)  # sRGB in [0, 1]
    emission: tuple[float, ...] = (0.0, 0.0, 0.0)  # sRGB in [0, 1]
    opacity: float | None = None  # in [0, 1]; None: not in the file
    maps: dict[str, str] = field(default_factory=dict)  # key of a texture line ("map_kd") -> options and file name
    folder: Path | None = None  # folder of the MTL file


class ObjText:
    """Lines of an OBJ file with the bytes `data`, grouped so that NumPy can parse many lines at once.

    Keys of lines are v (vertex position), vt (texture coordinates) and vn (normal). Raises ConfigError if the file has
    more lines, triangles, vertices or submeshes than the limits in `submesh.py`.

    Attributes:
        rows: key "v", "vt" or "vn" -> the lines with this key, without the key.
        faces: (material, vt, vn, C) -> the faces with this material and C corners. The bools vt and vn say whether
            their corners have texture coordinates and normals. A face is a text such as "1/4/2 2/5/2 3/6/2": for each
            corner the index of its v, its vt and its vn, as far as it has them. Indices start at 1.
        libraries: the lines with the key "mtllib", without the key; they name MTL files.
        polypaint: lines of vertex colours by ZBrush, without the key #MRGB. A line has 8 hexadecimal digits MMRRGGBB
            per vertex, for one or more vertices, without spaces. All lines together have the order of the vertices. MM
            is ZBrush's mask (not used).
    """

    def __init__(self, data: bytes) -> None:
        check_count(data.count(b"\nf "), vertices=max(data.count(b"\n%b " % key) for key in (b"v", b"vt", b"vn")))
        data = check_text(data)
        self.rows: dict[str, list[str]] = {"v": [], "vt": [], "vn": []}
        self.faces: dict[tuple[str, bool, bool, int], list[str]] = {}
        self.libraries, self.polypaint, material, triangles = list[str](), list[str](), "", 0
        joined = re.sub(rb"\\\r?\n|\t", b" ", data)
        for line in io.TextIOWrapper(io.BytesIO(joined), encoding(data), "replace"):
            key, _, rest = line.strip().partition(" ")
            key = key.lower()
            if key in self.rows:
                self.rows[key].append(rest.partition("#")[0] if "#" in rest else rest)
            elif key == "f":
                corners = rest.partition("#")[0].split()
                if "-" in rest:
                    corners = [self._absolute(corner) for corner in corners]
                if len(corners) > 2:
                    _, vt, vn = (corners[0] + "//").split("/")[:3]
                    form, triangles = (material, bool(vt), bool(vn), len(corners)), triangles + len(corners) - 2
                    self.faces.setdefault(form, []).append(" ".join(corners))
            elif key == "usemtl":
                material = rest.strip()
            elif key == "mtllib":
                self.libraries.append(rest.strip())
            elif key == "#mrgb" and _POLYPAINT.fullmatch(rest):
                self.polypaint.append(rest)
        check_count(triangles, len({form[:3] for form in self.faces}), max(map(len, self.rows.values())))

    def _absolute(self, corner: str) -> str:
        # negative indices count backwards from the last line
        pairs = zip(corner.split("/"), self.rows.values(), strict=False)
        return "/".join(str(int(part) + len(rows) + 1) if part.startswith("-") else part for part, rows in pairs)

    def triangles(self, points: Array) -> dict[tuple[str, bool, bool], Array]:
        """Return the triangles of all faces in groups: key (material name, with vt, with vn) -> int64 (F, 3, C).

        "With vt" and "with vn" say whether the triangles have texture coordinates and normals. Each corner has C
        indices that start at 0: of its vertex, then of its texture coordinates and normal if it has them, so C is 1, 2
        or 3. Polygons are split into triangles; `points` (V, 3) are the positions of the vertices.
        """
        groups = dict[tuple[str, bool, bool], list[Array]]()
        for (material, vt, vn, corners), lines in self.faces.items():
            numbers = np.fromstring(" ".join(lines).replace("/", " "), np.int64, sep=" ") - 1
            polygons = numbers.reshape(len(lines), corners, 1 + vt + vn)
            parts = np.take_along_axis(polygons[:, None], triangulate(points, polygons[..., 0])[..., None], 2)
            groups.setdefault((material, vt, vn), []).append(parts.reshape(-1, 3, 1 + vt + vn))
        return {group: np.concatenate(parts) for group, parts in groups.items()}

    def table(self, key: str, columns: int, missing: float = np.nan) -> Array:
        """Return the first `columns` numbers of the N lines of the file that start with `key`, (N, columns) float64.

        `key` is "v" (vertex positions and colours), "vt" (texture coordinates) or "vn" (normals).

        Lines with fewer numbers are padded with `missing`.
        """
        rows = self.rows[key]
        width = len(rows[0].split()) if rows else columns
        found = np.fromstring(" ".join(rows), np.float64, sep=" ")
        if len(found) != width * len(rows):  # lines of different lengths
            width, found, more = columns, np.empty((len(rows), columns)), [str(missing)] * columns
            for start in range(0, len(rows), RAGGED):
                part = [(row.split() + more)[:columns] for row in rows[start : start + RAGGED]]
                found[start : start + RAGGED] = np.array(part, np.float64)
        found = found.reshape(len(rows), width)[:, :columns]
        return np.pad(found, ((0, 0), (0, columns - found.shape[1])), constant_values=missing)


def read_obj(data: bytes, files: SideFiles, colours: bool) -> Iterator[Submesh]:
    """Yield the submeshes of an OBJ file. Each submesh has one material.

    Args:
        data: bytes of the file.
        files: reader of MTL files and textures.
        colours: whether to read materials, vertex colours and textures.

    Raises:
        ConfigError, IndexError, ValueError: if the file is damaged.
    """
    from trimesh.visual.texture import unmerge_faces

    obj = ObjText(data)
    vertices, uv, normals = obj.table("v", 7), obj.table("vt", 2, 0.0), obj.table("vn", 3)
    vertices = vertices[:, [0, 1, 2, 4, 5, 6]] if _has_weight_first(vertices) else vertices[:, :6]
    if obj.polypaint and np.isnan(vertices[:, 3:]).all():
        paint = np.frombuffer(bytes.fromhex("".join(obj.polypaint)), np.uint8).reshape(-1, 4)[: len(vertices), 1:]
        vertices[: len(paint), 3:] = paint / 255
    materials = _read_materials(obj.libraries, files) if colours else {}
    has_colours = bool(np.isfinite(vertices[:, 3:]).all(1).any())  # a single number after the position is a weight
    if colours and not has_colours and not obj.libraries and any(name for name, *_ in obj.faces):
        files.failures.append("it has materials, but names no MTL file (mtllib), so they have no colours")
    vertex_colours = np.nan_to_num(in_unit_range(vertices[:, 3:]), nan=1).clip(0, 1) if has_colours else vertices
    for (name, vt, vn), corners in reversed(obj.triangles(vertices[:, :3]).items()):
        if not 0 <= corners[..., 0].min() <= corners[..., 0].max() < len(vertices):
            raise ConfigError(f"a face has a vertex that does not exist; there are {len(vertices):,} vertices")
        if corners.min() < 0:
            raise ValueError("index 0")
        others = list[Array]()
        if vt or vn:
            faces, rows, *others = unmerge_faces(*np.moveaxis(corners, -1, 0))
        else:
            rows, inverse = np.unique(corners, return_inverse=True)
            faces = inverse.reshape(-1, 3)
        submesh = Submesh(vertices[rows, :3], faces, file_index=rows)
        if vt and len(uv):
            submesh = replace(submesh, uv=uv[others[0]])
        if vn and len(normals):
            submesh = replace(submesh, normals=normals[others[-1]])
        if colours:
            vertex = vertex_colours[rows] if has_colours else None
            if materials and name and name not in materials:
                files.failures.append(f"material {short(name)} is missing in the MTL file")
            submesh = _coloured(submesh, name, materials.get(name, Material()), vertex, files)
        yield submesh


def _has_weight_first(vertices: Array) -> bool:
    # whether lines with seven numbers, of `vertices` (V, 7), are x y z w r g b, and not x y z r g b alpha
    full = vertices[np.isfinite(vertices[:, 6])]
    if not len(full):
        return False
    alpha = full[0, 6] in (1, 255) and (full[:, 6] == full[0, 6]).all()
    weight = (full[:, 3] == 1).all() and full[:, 4:6].any()  # red with alpha is likelier than blue with a weight
    return bool(weight or not alpha)


def _read_materials(libraries: list[str], files: SideFiles) -> dict[str, Material]:
    # returns material name -> material; a text in `libraries` names one or several MTL files
    materials, material, left = dict[str, Material](), Material(), MAX_MTL_BYTES
    for library in dict.fromkeys(libraries):
        library = library if files.find(library) else library.partition(" #")[0]
        several = files.find(library) is None and any(files.find(name) for name in library.split())
        for name in library.split() if several else [library]:
            try:
                path = files.require(name)
                data = files.read(path, left)
                left -= len(data)
            except TooLarge:
                raise
            except ConfigError as error:
                files.failures.append(f"material file {error.problem}")
                continue
            for line in decode(data).splitlines():
                key, _, rest = line.strip().replace("\t", " ").partition(" ")
                if key.lower() == "newmtl":
                    material = materials[rest.strip()] = Material(folder=path.parent)
                else:
                    _set(material, key.lower(), rest.strip())
    return materials


def _set(material: Material, key: str, text: str) -> None:
    # unknown and damaged lines are ignored
    try:
        if key in ("map_kd", "map_ka", "map_ke", "map_d"):
            material.maps |= {key: text} if text else {}
        elif key in ("kd", "ke"):
            values = tuple(float(part) for part in text.split()[:3])
            colour = values if len(values) == 3 else (values[0],) * 3
            setattr(material, "colour" if key == "kd" else "emission", colour)
        elif key == "d":
            material.opacity = float(text.split()[-1])
        elif key == "tr" and material.opacity is None:
            material.opacity = 1 - float(text.split()[-1])
    except (ValueError, IndexError):
        pass


def _parsed(line: str, uv: Array) -> tuple[str, Array, tuple[Wrap, Wrap]]:
    # file name of a texture line, uv (V, 2) with the options of the line applied, and wrap modes
    options: dict[str, list[float]] = {"s": [1, 1], "o": [0, 0], "t": [0, 0]}
    wrap: Wrap = "repeat"
    start = 0
    while match := _OPTION.match(line, start):
        start, wrap = match.end(), "clamp" if match["clamp"] else wrap
        if match["name"]:
            numbers = [float(number) for number in match["numbers"].split()][:2]
            options[match["name"].lower()][: len(numbers)] = numbers
    return line[start:].partition(" #")[0].strip(), uv * options["s"] + options["o"], (wrap, wrap)


def _coloured(submesh: Submesh, name: str, material: Material, vertex: Array | None, files: SideFiles) -> Submesh:
    # A texture is not multiplied by the material's colour, because most exporters write an arbitrary colour with it.
    maps, colour = material.maps, material.colour
    line = maps.get("map_kd", maps.get("map_ka"))
    if line is None and not any(colour):  # a material that only emits light
        line, colour = maps.get("map_ke"), material.emission
    opacity = 1.0 if material.opacity is None else min(max(material.opacity, 0.0), 1.0)
    if opacity == 0 and "map_d" in maps:  # some exporters write d 0 beside a texture of the opacity
        opacity = 1.0
    if opacity == 0:
        files.failures.append(f"material {name} is transparent (d 0)")
    if maps.keys() - {"map_ke"} and submesh.uv is None:
        files.failures.append(f"material {name} has a texture, but its faces have no texture coordinates")
    base, mask, uv, wrap = None, None, submesh.uv, submesh.wrap
    if uv is not None and "map_d" in maps:
        file, uv, wrap = _parsed(maps["map_d"], uv)
        mask = files.image(file, material.folder)
    if submesh.uv is not None and line is not None:
        file, uv, wrap = _parsed(line, submesh.uv)
        base = files.image(file, material.folder)
    if mask is base and mask is not None and mask.shape[2] == 3:  # names the colour texture for an alpha that it lacks
        mask = None
    if base is None and mask is None:
        colours = np.tile(colour, (len(submesh.vertices), 1)).clip(0, 1) if vertex is None else vertex
        if opacity < 1:
            colours = np.column_stack([colours, np.full(len(colours), opacity)])
        return replace(submesh, colours=colours, flat=vertex is None)
    pixels = base if mask is None else files.masked(base, mask)
    assert pixels is not None
    levels = np.arange(256, dtype=np.float32)[:, None]
    rgb: Array = np.repeat(levels / np.float32(255), 3, axis=1)
    if base is None:
        rgb = np.tile(np.round(np.clip(colour, 0, 1) * 255).astype(np.float32) / np.float32(255), (256, 1))
    alpha: Array = np.full_like(levels, opacity) if mask is None else opacity * levels / 255
    table = rgb if mask is None and opacity == 1 else np.hstack([rgb, alpha])
    return replace(submesh, uv=uv, texture=Texture(pixels, table), wrap=wrap)
