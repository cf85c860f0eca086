"""Reader of the triangles and base colours of GLB and glTF 2.0 files.

Skinned meshes have the pose of the file's joint nodes. Morph targets have their default weights.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from pygltflib import Accessor, BufferView, Material, TextureInfo

from threedgen.config.errors import ConfigError, printable, short
from threedgen.config.plain_file import parse_json
from threedgen.geometry.images import to_srgb
from threedgen.geometry.side_files import SideFiles
from threedgen.geometry.submesh import Submesh, Wrap, check_count
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

T = TypeVar("T")

DRACO, SPECULAR = "KHR_draco_mesh_compression", "KHR_materials_pbrSpecularGlossiness"
NO_COMPRESSION, NO_TEXTURE_FORMAT = "Save it without compression.", "Save its textures as PNG or JPEG."
REFUSED = {
    DRACO: f"Draco. {NO_COMPRESSION}",
    "EXT_meshopt_compression": f"meshopt. {NO_COMPRESSION}",
    "KHR_meshopt_compression": f"meshopt. {NO_COMPRESSION}",
    "KHR_texture_basisu": f"KTX2. {NO_TEXTURE_FORMAT}",
}
"""Extensions that cannot be read: key of the extension -> its common name and advice to the user, for the error."""
HARMLESS = re.compile(
    r"KHR_(materials_.*|mesh_quantization|texture_transform|lights_punctual|animation_pointer|node_visibility|xmp.*)"
    r"|EXT_(texture_webp|texture_avif|mesh_gpu_instancing|lights_.*)|MSFT_texture_dds|FB_ngon_encoding"
)
"""Pattern of the extensions that need no warning: they are read, or change neither shape nor base colour."""
INSTANCES = "EXT_mesh_gpu_instancing"
IDENTITY = {"TRANSLATION": (0, 0, 0), "ROTATION": (0, 0, 0, 1), "SCALE": (1, 1, 1)}
"""Default translation, rotation (quaternion x, y, z, w) and scale of nodes and instances: the identity transform."""
MAX_KEPT = 1 << 28  # largest size in bytes of a buffer file that is kept in memory
MAX_NUMBERS = 400_000_000  # largest number of numbers that are read from all accessors
DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
WRAPS: dict[int, Wrap] = {33071: "clamp", 33648: "mirror"}


def gltf_tree(data: bytes) -> Any:
    """Return the JSON part of a GLB or glTF file as dicts, lists, numbers and strings. `data` are the file's bytes.

    Raises ConfigError if the JSON part is invalid or has too many values.
    """
    text = data[20 : 20 + int.from_bytes(data[12:16], "little")] if data[:4] == b"glTF" else data
    try:
        return parse_json(text)
    except ValueError as error:
        raise ConfigError(f"its JSON part cannot be read ({printable(error, 80)})") from None


class GltfFile:
    """Reader of one GLB or glTF file. For a damaged file, the methods raise exceptions of many classes.

    `data` are the bytes of the file. `files` reads the buffers and images that are stored in other files. Raises
    ConfigError if the file is glTF 1.0.
    """

    def __init__(self, data: bytes, files: SideFiles) -> None:
        self.tree, self.files, self.numbers = gltf_tree(data), files, 0
        self.binary = memoryview(b"")
        if data[:4] == b"glTF":
            start = 20 + int.from_bytes(data[12:16], "little")
            self.binary = memoryview(data)[start + 8 : start + 8 + int.from_bytes(data[start : start + 4], "little")]
        if data[:5] == b"glTF\1" or isinstance(self.tree.get("nodes"), dict):
            raise ConfigError("it is glTF 1.0. Save it as glTF 2.0")
        self.buffer, self.texture, self.joints = cache(self._buffer), cache(self._texture), cache(self._joints)
        for index in range(len(self.tree.get("buffers", []))):
            self.buffer(index)

    def submeshes(self, colours: bool) -> Iterator[Submesh]:
        """Yield the triangles of all nodes in the scene, in scene coordinates, as one submesh per primitive.

        A submesh has one material; if `colours` is True, its base colour, vertex colours and texture are read. Raises
        ConfigError if the file needs an extension that is not supported (mesh compression and, with `colours`, KTX2
        textures), or has too many triangles or primitives.
        """
        for name in self.tree.get("extensionsRequired", []):
            if name in REFUSED and (colours or "texture" not in name):
                raise _refusal(name)
            if name not in REFUSED and not HARMLESS.fullmatch(name):
                self.files.failures.append(
                    f"it requires {short(name, 60)}, which is not read. Shape or colours may differ"
                )
        nodes, groups = self.tree.get("nodes", []), dict[tuple[int, int | None, str], list[int]]()
        for index in self.visible_nodes():
            node = nodes[index]
            if refused := [name for name in node.get("extensions", {}) if name in REFUSED]:
                raise _refusal(refused[0])
            if "mesh" in node:  # copies of a mesh are read once
                groups.setdefault((node["mesh"], node.get("skin"), str(node.get("weights"))), []).append(index)
        copies = [sum(map(self.copies, group)) for group in groups.values()]
        check_count(sum(copies))
        meshes = [self.tree["meshes"][mesh] for mesh, *_ in groups]
        parts = [[part for part in mesh["primitives"] if "POSITION" in part["attributes"]] for mesh in meshes]
        triangles = sum(sum(map(self.triangle_count, part)) * n for part, n in zip(parts, copies, strict=True))
        check_count(triangles, sum(map(len, parts)))
        for mesh, primitives, group in zip(meshes, parts, groups.values(), strict=True):
            matrices = np.concatenate([self.instances(index) for index in group])
            for primitive in primitives:
                submesh = self.submesh(primitive, nodes[group[0]], mesh.get("weights", []), matrices, colours)
                if len(submesh.faces):
                    yield submesh

    def submesh(self, primitive: Tree, node: Tree, weights: list[float], matrices: Array, colours: bool) -> Submesh:
        """Read one primitive of the mesh of `node`; return its triangles, copied N times, in scene coordinates.

        `primitive` and `node` are JSON objects of the file. `matrices` (N, 4, 4) are the node-to-scene transforms of
        the N copies. A skinned primitive is placed by its joints instead, so its copies are equal. `weights` are the
        mesh's weights of its morph targets, used if the node has none. If `colours` is True, the material is also read.
        """
        position, weights = primitive["attributes"]["POSITION"], node.get("weights", weights)
        if DRACO in primitive.get("extensions", {}) and "bufferView" not in self.tree["accessors"][position]:
            raise _refusal(DRACO)
        faces, rows = self.faces(primitive), None
        if faces.size < self.tree["accessors"][position]["count"]:  # many primitives can have the same vertices
            rows, faces = np.unique(faces, return_inverse=True)
            faces = faces.reshape(-1, 3)
        points = self.morphed(primitive, "POSITION", weights, rows)
        normals = self.morphed(primitive, "NORMAL", weights, rows) if "NORMAL" in primitive["attributes"] else None
        if "skin" in node and "JOINTS_0" in primitive["attributes"]:  # replaces the transform of the node
            skin = self.skinning(primitive, node["skin"], rows)
            points = np.einsum("vij,vj->vi", skin[:, :3, :3], points) + skin[:, :3, 3]
            normals = None if normals is None else np.einsum("vij,vj->vi", skin[:, :3, :3], normals)
            matrices = np.broadcast_to(np.eye(4), matrices.shape)
        submesh = self.coloured(primitive, Submesh(points, faces, normals), colours, rows)
        return _copies(submesh, matrices)

    def triangle_count(self, primitive: Tree) -> int:
        """Return the number of triangles of a primitive (JSON object), without reading its vertex indices."""
        mode, index = primitive.get("mode", 4), primitive.get("indices", primitive["attributes"]["POSITION"])
        count: int = self.tree["accessors"][index]["count"]
        return {4: count // 3, 5: count - 2, 6: count - 2}.get(mode, 0)

    def _buffer(self, index: int) -> bytes | memoryview | Path:
        # bytes of a buffer, or path of the file that has them
        uri = self.tree["buffers"][index].get("uri")
        if uri is None:
            return self.binary if index == 0 else b""
        if uri.startswith("data:"):
            return _data_uri(uri)
        path, size = self.files.require(self.file_name(uri)), self.tree["buffers"][index].get("byteLength", 0)
        # many parts can share a buffer, so it is read once; of a large buffer, only the needed parts are read
        return self.files.read(path, count=size) if 0 < size <= MAX_KEPT else path

    def file_name(self, uri: str) -> str:
        """Return the file name in a URI, percent-decoded. Return `uri` unchanged if a file exists only under it."""
        name = unquote(uri)
        return uri if self.files.find(name) is None and self.files.find(uri) is not None else name

    def buffer_view(self, index: int, offset: int, dtype: str, count: int, columns: int = 1) -> Array:
        """Return an array (count, columns) from buffer view `index`, `offset` bytes after its start.

        `dtype` is the NumPy type of the numbers, such as "<f4".
        """
        view = _typed(BufferView, self.tree["bufferViews"][index])
        data, size = self.buffer(view.buffer), np.dtype(dtype).itemsize
        if not data and (compressed := [name for name in view.extensions if name in REFUSED]):
            raise _refusal(compressed[0])
        stride = view.byteStride or size * columns
        start, needed = view.byteOffset + offset, max(0, (count - 1) * stride + size * columns)
        length = max(0, min(needed, view.byteLength - offset))
        if isinstance(data, Path):
            data = self.files.read(data, start=start, count=length)
        else:
            data = memoryview(data)[start : start + length]
        if len(data) < needed:
            raise ConfigError(f"it has only {len(data):,} of {needed:,} bytes of an accessor")
        return np.ndarray((count, columns), dtype, data, 0, (stride, size))

    def accessor_array(self, index: int, rows: Array | None = None, normalise: bool = False) -> Array:
        """Return the values (count, columns) of accessor `index`; with `rows` (R,), only those rows: (R, columns).

        `columns` is the number of components of a value, such as 3 for positions. Integers are scaled to floats, signed
        ones in [-1, 1] and unsigned ones in [0, 1], if the accessor has the flag `normalized` or if `normalise` is
        True.
        """
        accessor = _typed(Accessor, self.tree["accessors"][index])
        dtype, columns = DTYPES[accessor.componentType], COLUMNS[accessor.type]
        stored = accessor.bufferView is not None and not accessor.sparse
        self.numbers += columns * (len(rows) if rows is not None and stored else accessor.count)
        if self.numbers > MAX_NUMBERS:
            raise ConfigError(f"its accessors have more than {MAX_NUMBERS:,} numbers; one has {accessor.count} values")
        if accessor.bufferView is not None:
            values = self.buffer_view(accessor.bufferView, accessor.byteOffset, dtype, accessor.count, columns)
        else:
            values = np.zeros((accessor.count, columns), dtype)
        if accessor.sparse:
            where, new, count = (accessor.sparse[key] for key in ("indices", "values", "count"))
            kind = DTYPES[where["componentType"]]
            changed = self.buffer_view(where["bufferView"], where.get("byteOffset", 0), kind, count)[:, 0]
            values = values.copy()
            values[changed] = self.buffer_view(new["bufferView"], new.get("byteOffset", 0), dtype, count, columns)
        values = values if rows is None else values[rows]
        if values.dtype.kind in "iu" and (accessor.normalized or normalise):
            return np.maximum(values / np.iinfo(values.dtype).max, -1)
        return values

    def morphed(self, primitive: Tree, key: str, weights: list[float], rows: Array | None) -> Array:
        """Return a vertex attribute (R, 3) float64 with morph targets applied.

        `primitive` is a JSON object. `rows` (R,) are the indices of the vertices to read; None: all. `key` is the name
        of the attribute, such as POSITION. The morph targets of the attribute, multiplied by `weights` (one per
        target), are added.
        """
        values = self.accessor_array(primitive["attributes"][key], rows).astype(np.float64)
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and key in target:
                values += weight * self.accessor_array(target[key], rows)
        return values

    def faces(self, primitive: Tree) -> Array:
        """Return the triangles (F, 3) of a primitive (JSON object) as vertex indices. Lines and points give F = 0."""
        mode = primitive.get("mode", 4)
        if "indices" in primitive:
            corners = self.accessor_array(primitive["indices"])[:, 0].astype(np.int64)
        else:
            corners = np.arange(self.tree["accessors"][primitive["attributes"]["POSITION"]]["count"])
        if mode == 5:
            strip = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
            return np.where(np.arange(len(strip))[:, None] % 2, strip[:, ::-1], strip)
        if mode == 6:
            return np.stack([np.broadcast_to(corners[:1], corners[2:].shape), corners[1:-1], corners[2:]], axis=1)
        return corners[: len(corners) // 3 * 3 if mode == 4 else 0].reshape(-1, 3)

    @cached_property
    def transforms(self) -> dict[int, Array]:
        """Dict with the node-to-scene transform (4, 4) of each node of the file, by the index of the node.

        Nodes outside of the scene are included, because joints of a skin can be such nodes.
        """
        nodes = self.tree.get("nodes", [])
        texts = {key: [node.get(key.lower(), default) for node in nodes] for key, default in IDENTITY.items()}
        local = _local({key: np.array(text, float).reshape(-1, len(IDENTITY[key])) for key, text in texts.items()})
        found = dict[int, Array]()
        scene = np.eye(4)
        stack: list[tuple[int, Array]] = [(root, scene) for root in (*self.roots(), *self.scene_roots())]
        while stack:
            index, parent = stack.pop()
            if index not in found:
                matrix = nodes[index].get("matrix")
                found[index] = parent @ (local[index] if matrix is None else np.array(matrix, float).reshape(4, 4).T)
                stack += [(child, found[index]) for child in nodes[index].get("children", [])]
        return found

    def roots(self) -> list[int]:
        """Return the indices of all nodes without a parent."""
        nodes = self.tree.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        return [index for index in range(len(nodes)) if index not in children]

    def scene_roots(self) -> list[int]:
        """Return the indices of the top nodes of the default scene."""
        scenes = self.tree.get("scenes", [])
        found: list[int] = scenes[self.tree.get("scene", 0)].get("nodes", []) if scenes else self.roots()
        return found

    def visible_nodes(self) -> list[int]:
        """Return the indices of the nodes in the default scene, without hidden ones (KHR_node_visibility)."""
        nodes, found, stack = self.tree.get("nodes", []), dict[int, None](), self.scene_roots()[:]
        while stack:
            index = stack.pop()
            shown = nodes[index].get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
            if shown and index not in found:
                found[index] = None
                stack += nodes[index].get("children", [])
        return list(found)

    def copies(self, index: int) -> int:
        """Return the number of copies of the mesh of node `index` (EXT_mesh_gpu_instancing); 1 without instancing."""
        return max((self.tree["accessors"][k]["count"] for k in self._instancing(index).values()), default=1)

    def _instancing(self, index: int) -> Tree:
        # attribute -> number of its accessor
        found: Tree = self.tree["nodes"][index].get("extensions", {}).get(INSTANCES, {}).get("attributes", {})
        return found

    def instances(self, index: int) -> Array:
        """Return the node-to-scene transforms (N, 4, 4) of the N copies of the mesh of node `index`."""
        attributes = self._instancing(index)
        if not attributes:
            return self.transforms[index][None]
        stored = {key: self.accessor_array(attributes[key], normalise=True) for key in IDENTITY if key in attributes}
        count = self.copies(index)
        local = _local({key: stored.get(key, np.tile(value, (count, 1))) for key, value in IDENTITY.items()})
        return np.asarray(self.transforms[index] @ local)

    def _joints(self, index: int) -> Array:
        # matrices (J, 4, 4) of the J joints of a skin: they map vertices from the bind pose to the scene
        skin = self.tree["skins"][index]
        joints = np.stack([self.transforms[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.accessor_array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
            joints = joints @ inverse[: len(joints)].astype(np.float64)
        return joints

    def skinning(self, primitive: Tree, index: int, rows: Array | None) -> Array:
        """Return the vertex-to-scene transforms (R, 4, 4) of a skinned primitive, one per vertex.

        Each one is the weighted mean of the transforms of the vertex's joints. `index` is the index of the skin. `rows`
        (R,) are the indices of the vertices to read; None: all.
        """
        joints, attributes = self.joints(index), primitive["attributes"]
        sets = [key[7:] for key in attributes if key.startswith("JOINTS_")]
        chosen = np.concatenate([self.accessor_array(attributes[f"JOINTS_{k}"], rows) for k in sets], axis=1).astype(
            int
        )
        weights = np.concatenate([self.accessor_array(attributes[f"WEIGHTS_{k}"], rows, True) for k in sets], axis=1)
        weights = weights / np.maximum(weights.sum(1, keepdims=True, dtype=np.float64), 1e-12)
        result = np.zeros((len(chosen), 4, 4))
        for joint, weight in zip(chosen.T, weights.T, strict=True):
            result += weight[:, None, None] * joints[joint]
        return result

    def coloured(self, primitive: Tree, submesh: Submesh, colours: bool, rows: Array | None) -> Submesh:
        """Return `submesh` with the primitive's texture coordinates and, if `colours` is True, its base colour.

        The base colour is a texture or, without one, the material's colour times the vertex colours. `primitive` is a
        JSON object of the file, and `submesh` has its triangles. `rows` (R,) are the indices of the vertices to read;
        None: all.
        """
        tree = self.tree["materials"][primitive["material"]] if colours and "material" in primitive else {}
        material = _typed(Material, tree)
        pbr, names = material.pbrMetallicRoughness or {}, ("baseColorFactor", "baseColorTexture")
        if SPECULAR in material.extensions:
            pbr, names = material.extensions[SPECULAR], ("diffuseFactor", "diffuseTexture")
        attributes, emission = primitive["attributes"], tree.get("emissiveFactor", (0, 0, 0))
        vertex_colour = attributes.get("COLOR_0")
        unspecified = vertex_colour is None and not pbr.keys() & set(names)
        if any(emission) and (unspecified or not any(pbr.get(names[0], (1,))[:3])):  # a material that only emits light
            opacity = [*pbr.get(names[0], (1, 1, 1, 1)), 1][3]
            pbr = {names[0]: [*emission, opacity], names[1]: tree.get("emissiveTexture", {})}
            vertex_colour = None
        factor, info = np.array(pbr.get(names[0], (1, 1, 1, 1)), np.float64), _typed(TextureInfo, pbr.get(names[1], {}))
        transform = info.extensions.get("KHR_texture_transform", {})
        accessor = attributes.get(f"TEXCOORD_{transform.get('texCoord', info.texCoord)}")
        if accessor is not None:  # v of glTF points downwards
            uv = _transformed(self.accessor_array(accessor, rows).astype(np.float64), transform)
            submesh = replace(submesh, uv=uv * (1, -1) + (0, 1))
        if not colours:
            return submesh
        vertex, channels = None, 3 if material.alphaMode == "OPAQUE" else 4
        cutoff = tree.get("alphaCutoff", 0.5) if material.alphaMode == "MASK" else None
        if vertex_colour is not None:
            vertex = self.accessor_array(vertex_colour, rows, True)[:, :channels]
            vertex = vertex.astype(np.float64).clip(0, 1)
        if info.index is not None and accessor is not None:
            texture, wrap = self.texture(info.index, tuple(factor[:channels].tolist()))
            if texture is not None:
                return replace(submesh, colours=vertex, texture=texture, wrap=wrap, cutoff=cutoff)
        elif info.index is not None:
            self.files.failures.append("a part with a texture has no texture coordinates")
        product = np.tile(factor[:channels], (len(submesh.vertices), 1))
        if vertex is not None:
            product[:, : vertex.shape[1]] *= vertex
        product[:, :3] = to_srgb(product[:, :3])
        return replace(submesh, colours=product, cutoff=cutoff, flat=vertex is None)

    def _texture(self, index: int, factor: tuple[float, ...]) -> tuple[Texture | None, tuple[Wrap, Wrap]]:
        # returns the texture times a linear RGB or RGBA factor, None if it cannot be read, and wrap modes (u, v)
        texture, image = self.tree["textures"][index], None
        sampler: Tree = self.tree["samplers"][texture["sampler"]] if "sampler" in texture else {}
        u: Wrap = WRAPS.get(sampler.get("wrapS", 0), "repeat")
        v: Wrap = WRAPS.get(sampler.get("wrapT", 0), "repeat")
        sources = {name: tree["source"] for name, tree in texture.get("extensions", {}).items() if "source" in tree}
        source = next((source for name, source in sources.items() if name not in REFUSED), texture.get("source"))
        if source is None and sources:
            raise _refusal(next(iter(sources)))
        if source is not None:
            image = self.image(self.tree["images"][source], source)
        return None if image is None else Texture.tinted(image, factor), (u, v)

    def image(self, tree: Tree, index: int) -> Array | None:
        """Return an image as uint8 (H, W, 3 or 4), or None if it cannot be read.

        `tree` is the JSON object of the image. `index` is its number, by which messages name the image. Raises
        ConfigError if the image is a KTX2 file.
        """
        uri = tree.get("uri", "")
        if tree.get("mimeType") == "image/ktx2" or uri.lower().endswith(".ktx2"):
            raise _refusal("KHR_texture_basisu")
        if "bufferView" in tree:
            length = self.tree["bufferViews"][tree["bufferView"]]["byteLength"]
            stored = partial(self.buffer_view, tree["bufferView"], 0, "u1", length)
            return self.files.image(f"image {index}", load=lambda: self.files.count_bytes(stored().tobytes()))
        if uri.startswith("data:"):
            return self.files.image(f"image {index}", load=lambda: self.files.count_bytes(_data_uri(uri)))
        return self.files.image(self.file_name(uri))


def _typed(kind: type[T], tree: Tree) -> T:
    # pygltflib objects have glTF's default values for missing keys
    known = vars(kind)["__dataclass_fields__"]
    return kind(**{key: value for key, value in tree.items() if key in known})


def _refusal(extension: str) -> ConfigError:
    return ConfigError(f"it uses {extension}: {REFUSED[extension]}")


def _data_uri(uri: str) -> bytes:
    header, _, body = uri.partition(",")
    return base64.b64decode(unquote(body) + "==") if header.endswith("base64") else unquote_to_bytes(body)


def _local(parts: dict[str, Array]) -> Array:
    # transforms (N, 4, 4) from "TRANSLATION" (N, 3), "ROTATION" (N, 4), x y z w, and "SCALE" (N, 3)
    from trimesh.transformations import quaternion_matrix

    result: Array = quaternion_matrix(parts["ROTATION"][:, [3, 0, 1, 2]]).reshape(-1, 4, 4)
    result[:, :3, :3] *= parts["SCALE"][:, None]
    result[:, :3, 3] = parts["TRANSLATION"]
    return result


def _copies(submesh: Submesh, matrices: Array) -> Submesh:
    # copies of all triangles, transformed by each of the matrices (N, 4, 4)
    copies, count, linear = len(matrices), len(submesh.vertices), matrices[:, :3, :3]
    with np.errstate(all="ignore"):  # for vertices that are not finite
        points = submesh.vertices @ linear.swapaxes(1, 2) + matrices[:, None, :3, 3]
    faces = np.where(np.linalg.det(linear)[:, None, None] < 0, submesh.faces[:, ::-1], submesh.faces)
    normals, uv, colours = submesh.normals, submesh.uv, submesh.colours
    return replace(
        submesh,
        vertices=points.reshape(-1, 3),
        faces=(faces + count * np.arange(copies)[:, None, None]).reshape(-1, 3),
        normals=None if normals is None else (normals @ np.linalg.pinv(linear)).reshape(-1, 3),
        uv=None if uv is None else np.tile(uv, (copies, 1)),
        colours=None if colours is None else np.tile(colours, (copies, 1)),
    )


def _transformed(uv: Array, transform: Tree) -> Array:
    # KHR_texture_transform, for (V, 2) with v downwards: scale, then rotation, then offset
    c, s = np.cos(transform.get("rotation", 0)), np.sin(transform.get("rotation", 0))
    scaled = uv * transform.get("scale", (1, 1))
    with np.errstate(all="ignore"):  # for coordinates that are not finite
        return np.asarray(scaled @ np.array([[c, -s], [s, c]]) + transform.get("offset", (0, 0)))
