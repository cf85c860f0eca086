"""Reader for the triangles and base colours of GLB and glTF 2.0 files.

Skinned meshes have the pose of the file's joint nodes, and morph targets their default weights.
"""

import base64
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from pygltflib import Accessor, BufferView, Material, TextureInfo

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json
from threedgen.geometry.images import to_srgb
from threedgen.geometry.submesh import SideFiles, Submesh, Wrap, tinted
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

T = TypeVar("T")

DRACO, SPECULAR = "KHR_draco_mesh_compression", "KHR_materials_pbrSpecularGlossiness"
NO_COMPRESSION, NO_TEXTURE_FORMAT = "Save it without compression.", "Save its textures as PNG or JPEG."
REFUSED = {
    DRACO: f"Draco. {NO_COMPRESSION}",
    "EXT_meshopt_compression": f"meshopt. {NO_COMPRESSION}",
    "KHR_meshopt_compression": f"meshopt. {NO_COMPRESSION}",
    "EXT_mesh_gpu_instancing": "GPU instances. Save it with one node per copy.",
    "KHR_texture_basisu": f"KTX2. {NO_TEXTURE_FORMAT}",
    "MSFT_texture_dds": f"DDS. {NO_TEXTURE_FORMAT}",
}
"""Extensions that cannot be read. The text is their common name and advice to the user."""
DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
WRAPS: dict[int, Wrap] = {33071: "clamp", 33648: "mirror"}


def gltf_tree(data: bytes) -> Any:
    """Parse the JSON part of the bytes of a GLB or glTF file. Raises ValueError."""
    return parse_json(data[20 : 20 + int.from_bytes(data[12:16], "little")] if data[:4] == b"glTF" else data)


class GltfFile:
    """Reader of one GLB or glTF file with the bytes `data`. If it is damaged, methods raise many types of errors."""

    def __init__(self, data: bytes, files: SideFiles) -> None:
        self.tree, self.files, self.binary = gltf_tree(data), files, b""
        if data[:4] == b"glTF":
            start = 20 + int.from_bytes(data[12:16], "little")
            self.binary = data[start + 8 : start + 8 + int.from_bytes(data[start : start + 4], "little")]
        self.buffer, self.texture = cache(self._buffer), cache(self._texture)
        self.size = len(data) + sum(len(self.buffer(index)) for index in range(len(self.tree.get("buffers", []))))

    def submeshes(self, colours: bool) -> Iterator[Submesh]:
        """Read the triangles of all nodes and, if `colours` is True, materials, vertex colours and textures."""
        for name in self.tree.get("extensionsRequired", []):
            if name in REFUSED and (colours or "texture" not in name):
                raise _refusal(name)
        transforms = self.transforms()
        for index, matrix in transforms.items():
            node = self.tree["nodes"][index]
            if refused := [name for name in node.get("extensions", {}) if name in REFUSED]:
                raise _refusal(refused[0])
            mesh = self.tree["meshes"][node["mesh"]] if "mesh" in node else {"primitives": []}
            weights = node.get("weights", mesh.get("weights", []))
            for primitive in mesh["primitives"]:
                position = self.tree["accessors"][primitive["attributes"]["POSITION"]]
                if DRACO in primitive.get("extensions", {}) and "bufferView" not in position:
                    raise _refusal(DRACO)
                points, faces = self.morphed(primitive, "POSITION", weights), self.faces(primitive)
                if not len(faces):
                    continue
                normals = self.morphed(primitive, "NORMAL", weights) if "NORMAL" in primitive["attributes"] else None
                if "skin" in node and "JOINTS_0" in primitive["attributes"]:  # replaces the transform of the node
                    skin = self.skinning(primitive, node["skin"], transforms)
                    points = np.einsum("vij,vj->vi", skin[:, :3, :3], points) + skin[:, :3, 3]
                    normals = None if normals is None else np.einsum("vij,vj->vi", skin[:, :3, :3], normals)
                else:
                    points = points @ matrix[:3, :3].T + matrix[:3, 3]
                    normals = None if normals is None else normals @ np.linalg.pinv(matrix[:3, :3])
                    faces = faces[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else faces
                yield self.coloured(primitive, Submesh(points, faces, normals), colours)

    def _buffer(self, index: int) -> bytes:
        uri = self.tree["buffers"][index].get("uri")
        if uri is None:
            return self.binary if index == 0 else b""
        return _data_uri(uri) if uri.startswith("data:") else self.files.read(self.file_name(uri))

    def file_name(self, uri: str) -> str:
        """Decode the percent-encoding of a URI, unless only a file with the encoded name exists."""
        name = unquote(uri)
        return uri if self.files.find(name) is None and self.files.find(uri) is not None else name

    def view(self, index: int, offset: int, dtype: str, count: int, columns: int = 1) -> Array:
        """Return an array (count, columns) of `dtype` from a buffer view, whose first `offset` bytes are skipped."""
        view = _typed(BufferView, self.tree["bufferViews"][index])
        data = self.buffer(view.buffer)
        if not data and (compressed := [name for name in view.extensions if name in REFUSED]):
            raise _refusal(compressed[0])
        size, part = np.dtype(dtype).itemsize, memoryview(data)[view.byteOffset : view.byteOffset + view.byteLength]
        return np.ndarray((count, columns), dtype, part, offset, (view.byteStride or size * columns, size))

    def array(self, index: int, normalise: bool = False) -> Array:
        """Return the values (count, columns) of an accessor.

        Integers become floats in [-1, 1] if the accessor is normalised or `normalise` is True.
        """
        accessor = _typed(Accessor, self.tree["accessors"][index])
        dtype, columns = DTYPES[accessor.componentType], COLUMNS[accessor.type]
        if accessor.bufferView is not None:
            values = self.view(accessor.bufferView, accessor.byteOffset, dtype, accessor.count, columns)
        elif accessor.count > self.size:  # zeros take no space in the file, but no mesh has only zeros
            raise ConfigError(f"it declares {accessor.count} values, but it has {self.size} bytes")
        else:
            values = np.zeros((accessor.count, columns), dtype)
        if accessor.sparse:
            where, new, count = (accessor.sparse[key] for key in ("indices", "values", "count"))
            kind = DTYPES[where["componentType"]]
            rows = self.view(where["bufferView"], where.get("byteOffset", 0), kind, count)[:, 0]
            values = values.copy()
            values[rows] = self.view(new["bufferView"], new.get("byteOffset", 0), dtype, count, columns)
        if values.dtype.kind in "iu" and (accessor.normalized or normalise):
            return np.maximum(values / np.iinfo(values.dtype).max, -1)
        return values

    def morphed(self, primitive: Tree, key: str, weights: list[float]) -> Array:
        """Return the attribute `key` (V, 3), float64, plus the weighted morph targets."""
        values = self.array(primitive["attributes"][key]).astype(np.float64)
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and key in target:
                values += weight * self.array(target[key])
        return values

    def faces(self, primitive: Tree) -> Array:
        """Return the faces (F, 3) of a primitive with triangles, a triangle strip or a fan; else F = 0."""
        mode = primitive.get("mode", 4)
        if "indices" in primitive:
            corners = self.array(primitive["indices"])[:, 0].astype(np.int64)
        else:
            corners = np.arange(self.tree["accessors"][primitive["attributes"]["POSITION"]]["count"])
        if mode == 5:
            strip = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
            return np.where(np.arange(len(strip))[:, None] % 2, strip[:, ::-1], strip)
        if mode == 6:
            return np.stack([np.full_like(corners[2:], corners[0]), corners[1:-1], corners[2:]], axis=1)
        return corners[: len(corners) // 3 * 3 if mode == 4 else 0].reshape(-1, 3)

    def transforms(self) -> dict[int, Array]:
        """Return the node-to-scene transforms (4, 4) of the scene's nodes by node index."""
        nodes, scenes = self.tree.get("nodes", []), self.tree.get("scenes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [index for index in range(len(nodes)) if index not in children]
        roots = scenes[self.tree.get("scene", 0)].get("nodes", []) if scenes else roots
        found = dict[int, Array]()
        stack: list[tuple[int, Array]] = [(root, np.eye(4)) for root in roots]
        while stack:
            index, parent = stack.pop()
            if index not in found:
                found[index] = parent @ _local(nodes[index])
                stack += [(child, found[index]) for child in nodes[index].get("children", [])]
        return found

    def skinning(self, primitive: Tree, index: int, transforms: dict[int, Array]) -> Array:
        """Return vertex-to-scene transforms (V, 4, 4): for each vertex, the weighted mean of its joints' transforms.

        `index`: number of the skin. `transforms`: node-to-scene transform (4, 4) of each node, by node number.
        """
        skin = self.tree["skins"][index]
        joints = np.stack([transforms[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
            joints = joints @ inverse[: len(joints)].astype(np.float64)
        sets = [key[7:] for key in primitive["attributes"] if key.startswith("JOINTS_")]
        chosen = np.concatenate([self.array(primitive["attributes"][f"JOINTS_{k}"]) for k in sets], axis=1).astype(int)
        weights = np.concatenate([self.array(primitive["attributes"][f"WEIGHTS_{k}"], True) for k in sets], axis=1)
        weights = weights / np.maximum(weights.sum(1, keepdims=True, dtype=np.float64), 1e-12)
        result = np.zeros((len(chosen), 4, 4))
        for joint, weight in zip(chosen.T, weights.T, strict=True):
            result += weight[:, None, None] * joints[joint]
        return result

    def coloured(self, primitive: Tree, submesh: Submesh, colours: bool) -> Submesh:
        """Return the submesh with the texture coordinates, texture and colours of its material's base colour.

        If `colours` is False, only the texture coordinates TEXCOORD_0 are added.
        """
        tree = self.tree["materials"][primitive["material"]] if colours and "material" in primitive else {}
        material = _typed(Material, tree)
        pbr, names = material.pbrMetallicRoughness or {}, ("baseColorFactor", "baseColorTexture")
        if SPECULAR in material.extensions:
            pbr, names = material.extensions[SPECULAR], ("diffuseFactor", "diffuseTexture")
        factor, info = np.array(pbr.get(names[0], (1, 1, 1, 1)), np.float64), _typed(TextureInfo, pbr.get(names[1], {}))
        transform = info.extensions.get("KHR_texture_transform", {})
        accessor = primitive["attributes"].get(f"TEXCOORD_{transform.get('texCoord', info.texCoord)}")
        if accessor is not None:  # v of glTF points downwards
            uv = _transformed(self.array(accessor).astype(np.float64), transform)
            submesh = replace(submesh, uv=uv * (1, -1) + (0, 1))
        if not colours:
            return submesh
        vertex, channels = None, 3 if material.alphaMode == "OPAQUE" else 4
        cutoff = tree.get("alphaCutoff", 0.5) if material.alphaMode == "MASK" else None
        if "COLOR_0" in primitive["attributes"]:
            vertex = self.array(primitive["attributes"]["COLOR_0"], True)[:, :channels].astype(np.float64).clip(0, 1)
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

    def _texture(self, index: int, factor: tuple[float, ...]) -> tuple[Array | None, tuple[Wrap, Wrap]]:
        """Return a texture times a linear RGB or RGBA factor (None if it is missing), and its wrap modes (u, v)."""
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
        return None if image is None else tinted(image, factor), (u, v)

    def image(self, tree: Tree, index: int) -> Array | None:
        """Return an image, uint8 (H, W, 3 or 4), or None if it cannot be read."""
        uri = tree.get("uri", "")
        if tree.get("mimeType") == "image/ktx2" or uri.lower().endswith(".ktx2"):
            raise _refusal("KHR_texture_basisu")
        if "bufferView" in tree:
            length = self.tree["bufferViews"][tree["bufferView"]]["byteLength"]
            return self.files.image(f"image {index}", self.view(tree["bufferView"], 0, "u1", length).tobytes())
        if uri.startswith("data:"):
            return self.files.image(f"image {index}", _data_uri(uri))
        return self.files.image(self.file_name(uri))


def _typed(kind: type[T], tree: Tree) -> T:
    """Create a pygltflib object, which has glTF's default values, from the known keys of `tree`."""
    known = vars(kind)["__dataclass_fields__"]
    return kind(**{key: value for key, value in tree.items() if key in known})


def _refusal(extension: str) -> ConfigError:
    return ConfigError(f"it uses {extension}: {REFUSED[extension]}")


def _data_uri(uri: str) -> bytes:
    header, _, body = uri.partition(",")
    return base64.b64decode(unquote(body)) if header.endswith("base64") else unquote_to_bytes(body)


def _local(node: Tree) -> Array:
    from trimesh.transformations import quaternion_matrix

    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    result: Array = quaternion_matrix((w, x, y, z))
    result[:3, :3] *= node.get("scale", (1, 1, 1))
    result[:3, 3] = node.get("translation", (0, 0, 0))
    return result


def _transformed(uv: Array, transform: Tree) -> Array:
    """Apply KHR_texture_transform to texture coordinates (V, 2), v downwards: scale, then rotation, then offset."""
    c, s = np.cos(transform.get("rotation", 0)), np.sin(transform.get("rotation", 0))
    scaled = uv * transform.get("scale", (1, 1))
    return scaled @ np.array([[c, -s], [s, c]]) + transform.get("offset", (0, 0))
