"""Reader of the triangles and base colours of GLB and glTF 2.0 files.

Skinned meshes have the pose of the file's joint nodes. Morph targets have their default weights.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from pygltflib import Material, TextureInfo

from threedgen.config.errors import short
from threedgen.geometry.gltf_data import DRACO, REFUSED, GltfData, refusal, typed
from threedgen.geometry.gltf_nodes import GltfNodes
from threedgen.geometry.images import to_srgb
from threedgen.geometry.side_files import SideFiles
from threedgen.geometry.submesh import Submesh, Wrap, check_count
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

SPECULAR = "KHR_materials_pbrSpecularGlossiness"
HARMLESS = re.compile(
    r"KHR_(materials_.*|mesh_quantization|texture_transform|lights_punctual|animation_pointer|node_visibility|xmp.*)"
    r"|EXT_(texture_webp|texture_avif|mesh_gpu_instancing|lights_.*)|MSFT_texture_dds|FB_ngon_encoding"
)
"""Pattern of the extensions that need no warning: they are read, or change neither shape nor base colour."""
WRAPS: dict[int, Wrap] = {33071: "clamp", 33648: "mirror"}


class GltfFile:
    """Reader of the triangles and base colours of one GLB or glTF file. The method `submeshes` yields them.

    `data` are the bytes of the file. `files`, a `SideFiles` for the path of the file, finds and reads the buffers and
    images that are stored in other files, and collects messages for the user. Raises ConfigError if the file is glTF
    1.0. For a damaged file, the methods raise exceptions of many classes.
    """

    def __init__(self, data: bytes, files: SideFiles) -> None:
        self.data, self.files = GltfData(data, files), files
        self.tree, self.nodes, self.texture = self.data.tree, GltfNodes(self.data), cache(self._texture)

    def submeshes(self, colours: bool) -> Iterator[Submesh]:
        """Yield the triangles of all nodes in the scene, in scene coordinates, as one submesh per primitive.

        A submesh has one material; if `colours` is True, its base colour, vertex colours and texture are read. Raises
        ConfigError if the file needs an extension that is not supported (mesh compression and, with `colours`, KTX2
        textures), or has too many triangles or primitives.
        """
        for name in self.tree.get("extensionsRequired", []):
            if name in REFUSED and (colours or "texture" not in name):
                raise refusal(name)
            if name not in REFUSED and not HARMLESS.fullmatch(name):
                remark = f"it requires {short(name, 60)}, which is not read. Shape or colours may differ"
                self.files.failures.append(remark)
        if not colours and any(tree.get("alphaMode", "OPAQUE") != "OPAQUE" for tree in self.tree.get("materials", [])):
            self.files.failures.append("its transparency is not read, so that cut-out surfaces become opaque")
        groups = dict[tuple[int, int | None, str], list[int]]()
        for index in self.nodes.visible():
            node = self.tree["nodes"][index]
            if refused := [name for name in node.get("extensions", {}) if name in REFUSED]:
                raise refusal(refused[0])
            if "mesh" in node:  # copies of a mesh are read once
                groups.setdefault((node["mesh"], node.get("skin"), str(node.get("weights"))), []).append(index)
        copies = [sum(map(self.nodes.copies, group)) for group in groups.values()]
        check_count(sum(copies))
        meshes = [self.tree["meshes"][mesh] for mesh, *_ in groups]
        parts = [[part for part in mesh["primitives"] if "POSITION" in part["attributes"]] for mesh in meshes]
        triangles = sum(sum(map(self.triangle_count, part)) * n for part, n in zip(parts, copies, strict=True))
        check_count(triangles, sum(map(len, parts)))
        for mesh, primitives, group in zip(meshes, parts, groups.values(), strict=True):
            matrices = np.concatenate([self.nodes.instances(index) for index in group])
            for primitive in primitives:
                node, weights = self.tree["nodes"][group[0]], mesh.get("weights", [])
                submesh = self.submesh(primitive, node, weights, matrices, colours)
                if len(submesh.faces):
                    yield submesh

    def submesh(self, primitive: Tree, node: Tree, weights: list[float], matrices: Array, colours: bool) -> Submesh:
        """Read one primitive of a mesh; return N copies of its triangles, in scene coordinates, as one submesh.

        Args:
            primitive: JSON object of the primitive.
            node: JSON object of a node that has the mesh. Its skin and the weights of its morph targets are used.
            weights: weights of the morph targets from the mesh, used if `node` has no weights.
            matrices: (N, 4, 4) node-to-scene transform of each copy. A primitive with a skin is placed by its joints
                instead, so that all N copies have the same place.
            colours: whether to read the material.
        """
        position, weights = primitive["attributes"]["POSITION"], node.get("weights", weights)
        if DRACO in primitive.get("extensions", {}) and "bufferView" not in self.tree["accessors"][position]:
            raise refusal(DRACO)
        faces, rows = self.faces(primitive), None
        if faces.size < self.tree["accessors"][position]["count"]:  # many primitives can have the same vertices
            rows, faces = np.unique(faces, return_inverse=True)
            faces = faces.reshape(-1, 3)
        points = self.morphed(primitive, "POSITION", weights, rows)
        normals = self.morphed(primitive, "NORMAL", weights, rows) if "NORMAL" in primitive["attributes"] else None
        if "skin" in node and "JOINTS_0" in primitive["attributes"]:  # replaces the transform of the node
            skin = self.nodes.skinning(primitive, node["skin"], rows)
            points = np.einsum("vij,vj->vi", skin[:, :3, :3], points) + skin[:, :3, 3]
            if normals is not None:
                normals = np.einsum("vij,vj->vi", _normal_matrices(skin[:, :3, :3]), normals)
            matrices = np.broadcast_to(np.eye(4), matrices.shape)
        submesh = self.coloured(primitive, Submesh(points, faces, normals), colours, rows)
        return _copies(submesh, matrices)

    def triangle_count(self, primitive: Tree) -> int:
        """Return the number of triangles of a primitive (JSON object), without reading its vertex indices."""
        mode, index = primitive.get("mode", 4), primitive.get("indices", primitive["attributes"]["POSITION"])
        count: int = self.tree["accessors"][index]["count"]
        return {4: count // 3, 5: max(count - 2, 0), 6: max(count - 2, 0)}.get(mode, 0)

    def faces(self, primitive: Tree) -> Array:
        """Return the triangles (F, 3) of a primitive (JSON object) as vertex indices. Lines and points give F = 0."""
        mode = primitive.get("mode", 4)
        if "indices" in primitive:
            corners = self.data.accessor_array(primitive["indices"])[:, 0].astype(np.int64)
        else:
            corners = np.arange(self.tree["accessors"][primitive["attributes"]["POSITION"]]["count"])
        if mode == 5:
            strip = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
            return np.where(np.arange(len(strip))[:, None] % 2, strip[:, ::-1], strip)
        if mode == 6:
            return np.stack([np.broadcast_to(corners[:1], corners[2:].shape), corners[1:-1], corners[2:]], axis=1)
        return corners[: len(corners) // 3 * 3 if mode == 4 else 0].reshape(-1, 3)

    def morphed(self, primitive: Tree, key: str, weights: list[float], rows: Array | None) -> Array:
        """Return a vertex attribute (R, 3) float64 with morph targets applied.

        `primitive` is a JSON object. `rows` (R,) are the indices of the vertices to read; None: all. `key` is the name
        of the attribute, such as POSITION. The morph targets of the attribute, multiplied by `weights` (one per
        target), are added.
        """
        values = self.data.accessor_array(primitive["attributes"][key], rows).astype(np.float64)
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and key in target:
                values += weight * self.data.accessor_array(target[key], rows)
        return values

    def coloured(self, primitive: Tree, submesh: Submesh, colours: bool, rows: Array | None) -> Submesh:
        """Return `submesh` with the primitive's texture coordinates and, if `colours` is True, its base colour.

        The base colour is the product of the material's colour, the vertex colours, if any, and the texture, if any. A
        material that only emits light has its emission as base colour. `primitive` is a JSON object of the file, and
        `submesh` has its triangles. Vertex k of `submesh` is vertex `rows[k]` of the primitive, or vertex k if `rows`
        is None.
        """
        tree = self.tree["materials"][primitive["material"]] if colours and "material" in primitive else {}
        material = typed(Material, tree)
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
        factor, info = np.array(pbr.get(names[0], (1, 1, 1, 1)), np.float64), typed(TextureInfo, pbr.get(names[1], {}))
        transform = info.extensions.get("KHR_texture_transform", {})
        accessor = attributes.get(f"TEXCOORD_{transform.get('texCoord', info.texCoord)}")
        if accessor is not None:  # v of glTF points downwards
            uv = _transformed(self.data.accessor_array(accessor, rows).astype(np.float64), transform)
            submesh = replace(submesh, uv=uv * (1, -1) + (0, 1))
        if not colours:
            return submesh
        vertex, channels = None, 3 if material.alphaMode == "OPAQUE" else 4
        cutoff = tree.get("alphaCutoff", 0.5) if material.alphaMode == "MASK" else None
        if vertex_colour is not None:
            vertex = self.data.accessor_array(vertex_colour, rows, True)[:, :channels].astype(np.float64).clip(0, 1)
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
            raise refusal(next(iter(sources)))
        if source is not None:
            image = self.data.image(self.tree["images"][source], source)
        return None if image is None else Texture.tinted(image, factor), (u, v)


def _normal_matrices(linear: Array) -> Array:
    # the matrices (N, 3, 3) for normals, if `linear` (N, 3, 3) are those for points: cofactors, which are the inverse
    # transposes up to a factor, but also exist without an inverse
    a, b, c = linear.swapaxes(0, 1)
    with np.errstate(all="ignore"):  # for matrices that are not finite
        cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
        mirrored = (a * cofactors[:, 0]).sum(1) < 0
    return np.where(mirrored[:, None, None], -cofactors, cofactors)


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
        normals=None if normals is None else (normals @ _normal_matrices(linear).swapaxes(1, 2)).reshape(-1, 3),
        uv=None if uv is None else np.tile(uv, (copies, 1)),
        colours=None if colours is None else np.tile(colours, (copies, 1)),
    )


def _transformed(uv: Array, transform: Tree) -> Array:
    # KHR_texture_transform, for (V, 2) with v downwards: scale, then rotation, then offset
    c, s = np.cos(transform.get("rotation", 0)), np.sin(transform.get("rotation", 0))
    scaled = uv * transform.get("scale", (1, 1))
    with np.errstate(all="ignore"):  # for coordinates that are not finite
        return np.asarray(scaled @ np.array([[c, -s], [s, c]]) + transform.get("offset", (0, 0)))
