"""Mesh files for tests of the reader: textured squares as GLB, glTF and OBJ, and their colours seen from the front.

The square spans x and y from -1 to 1 at z = 0 and faces +z. Its texture has four colours.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib as gl
import torch

from threedgen.data.coloured_mesh import ColouredMesh, read_mesh
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import png
from threedgen.geometry.poses import orbit_array
from threedgen.run.arrays import Array

SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
"""Texture coordinates of the corners, v downwards as in glTF."""
FACES = np.array([[0, 1, 2], [0, 2, 3]], np.uint16)
COLOURS = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 60, 220], [240, 220, 40]]], np.uint8)
"""Colours of the texture (2, 2, 3): upper left, upper right; lower left, lower right."""
TEXTURE = np.kron(COLOURS, np.ones((8, 8, 1), np.uint8))
PIXELS = 64
_CENTRES = (np.array([3, 8, 14, 21, 27, 36, 43, 49, 54, 60]) + 0.5) * 2 / PIXELS - 1
SPOTS = np.stack(np.meshgrid(_CENTRES, _CENTRES), axis=-1).reshape(-1, 2)
"""Points (100, 2) of the square at pixel centres of `seen`."""
PLY = "ply\nformat ascii 1.0\ncomment TextureFile {}\nelement vertex 4\n"
PLY += "".join(f"property float {name}\n" for name in "xyzst")
PLY += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
PLY += "".join(f"{x} {y} {z} {u} {1 - v}\n" for (x, y, z), (u, v) in zip(SQUARE.tolist(), UV.tolist(), strict=True))
PLY += "3 0 1 2\n3 0 2 3\n"
"""Text of a PLY file of the square; {} is the name of the texture."""
COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Glb:
    """Builder of a GLB with pygltflib. `gltf` can be changed before it is written."""

    def __init__(self) -> None:
        self.gltf, self.data = gl.GLTF2(scene=0, scenes=[gl.Scene(nodes=[0])]), bytearray()

    def view(self, raw: bytes) -> int:
        self.gltf.bufferViews.append(gl.BufferView(buffer=0, byteOffset=len(self.data), byteLength=len(raw)))
        self.data += raw + bytes(-len(raw) % 4)
        return len(self.gltf.bufferViews) - 1

    def accessor(self, array: Array, stored: bool = True, **fields: Any) -> int:
        """Add an array (N,) or (N, C); without `stored` it has no buffer view."""
        rows = array.reshape(len(array), -1)
        view = self.view(rows.tobytes()) if stored else None
        kind = TYPES[rows.shape[1]]
        self.gltf.accessors.append(
            gl.Accessor(
                bufferView=view, componentType=COMPONENTS[array.dtype.str[1:]], count=len(rows), type=kind, **fields
            )
        )
        return len(self.gltf.accessors) - 1

    def sparse(self, array: Array, base: Array | None, rows: Array) -> int:
        """Add an array whose `rows` are stored sparsely, on top of `base` or of zeros."""
        where = gl.AccessorSparseIndices(bufferView=self.view(rows.astype("<u2").tobytes()), componentType=5123)
        values = gl.AccessorSparseValues(bufferView=self.view(array[rows].tobytes()))
        sparse = gl.Sparse(count=len(rows), indices=where, values=values)
        return self.accessor(array if base is None else base, base is not None, sparse=sparse)

    def texture(self, pixels: Array = TEXTURE, uri: str | None = None, **sampler: Any) -> gl.TextureInfo:
        """Add an embedded image, or the image of a side file, with its texture."""
        g = self.gltf
        view = self.view(png(pixels)) if uri is None else None
        g.images.append(gl.Image(bufferView=view, mimeType="image/png" if uri is None else None, uri=uri))
        g.samplers.append(gl.Sampler(**sampler))
        g.textures.append(gl.Texture(source=len(g.images) - 1, sampler=len(g.samplers) - 1))
        return gl.TextureInfo(index=len(g.textures) - 1)

    def material(self, info: gl.TextureInfo | None = None, factor: Any = (1, 1, 1, 1), **fields: Any) -> int:
        pbr = gl.PbrMetallicRoughness(baseColorTexture=info, baseColorFactor=list(factor))
        self.gltf.materials.append(gl.Material(pbrMetallicRoughness=pbr, **fields))
        return len(self.gltf.materials) - 1

    def square(
        self, material: int | None = None, node: dict[str, Any] | None = None, **attributes: Any
    ) -> gl.Primitive:
        """Add a node with a square; `attributes`: accessor indices that replace the usual ones."""
        if "POSITION" not in attributes:
            attributes["POSITION"] = self.accessor(SQUARE)
        if "TEXCOORD_0" not in attributes:
            attributes["TEXCOORD_0"] = self.accessor(UV)
        primitive = gl.Primitive(attributes=gl.Attributes(**attributes), material=material)
        primitive.indices = self.accessor(FACES.reshape(-1))
        self.gltf.meshes.append(gl.Mesh(primitives=[primitive]))
        self.gltf.nodes.append(gl.Node(mesh=len(self.gltf.meshes) - 1, **(node or {})))
        return primitive

    def to_bytes(self) -> bytes:
        self.gltf.buffers = [gl.Buffer(byteLength=len(self.data))]
        self.gltf.set_binary_blob(bytes(self.data))
        return b"".join(self.gltf.save_to_bytes())

    def write(self, path: Path, buffer: str | None = None) -> Path:
        """Write a GLB, or a glTF file whose buffer is the side file `buffer` or, for "", a data URI."""
        if path.suffix == ".gltf":
            uri = buffer or f"data:application/octet-stream;base64,{base64.b64encode(self.data).decode()}"
            self.gltf.buffers = [gl.Buffer(byteLength=len(self.data), uri=uri)]
            path.write_text(self.gltf.gltf_to_json())
        else:
            path.write_bytes(self.to_bytes())
        return path


def write_obj(folder: Path, mtl: str | None, lines: str = "", colours: Array | None = None, uv: bool = True) -> Path:
    """Write the square as square.obj, with the material m in square.mtl, and `lines` at its start."""
    rows = SQUARE if colours is None else np.concatenate([SQUARE, colours], axis=1)
    text = "mtllib square.mtl\n" + lines + "usemtl m\n"
    text += "".join(f"v {' '.join(f'{x:g}' for x in row)}\n" for row in rows)
    text += "".join(f"vt {u:g} {1 - v:g}\n" for u, v in UV)
    text += "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n" if uv else "f 1 2 3\nf 1 3 4\n"
    if mtl is not None:
        (folder / "square.mtl").write_text(f"newmtl m\nKd 0.8 0.8 0.8\n{mtl}\n")
    (folder / "square.obj").write_text(text)
    return folder / "square.obj"


def seen(mesh: ColouredMesh, spots: Array = SPOTS) -> Array:
    """Return the colours (N, 4) uint8 at points x, y (N, 2) of the front view, in RGBA with straight alpha."""
    at = np.zeros(1)
    c2w = torch.from_numpy(orbit_array(at, at, at + 50))
    cameras = Cameras(c2w, Projection.orthographic(torch.ones(1), PIXELS, PIXELS), PIXELS, PIXELS)
    image = np.round(255 * mesh.render_views(cameras, None)[0]).astype(int)
    column, row = ((spots * (1, -1) + 1) * PIXELS / 2).astype(int).T
    return image[row, column]


def texel(uv: Array) -> Array:
    """Return the colours (N, 3) of the texture at texture coordinates (N, 2) in [0, 1], v downwards; -1 within a texel
    of another colour, where a bilinear sample is a mixture."""
    found = COLOURS[(uv[:, 1] > 0.5).astype(int), (uv[:, 0] > 0.5).astype(int)].astype(int)
    border = np.abs(uv - 0.5).min(1) < 1.5 / 16
    return np.where(border[:, None], -1, found)


def uv_of(spots: Array = SPOTS) -> Array:
    """Return the texture coordinates (N, 2) of points of the square, v downwards."""
    return spots * (0.5, -0.5) + 0.5


def assert_colours(path: Path, expected: Array, alpha: int | Array = 255) -> None:
    """Check the colours at `SPOTS`; `expected` is (100, 3), -1 where a colour is not checked."""
    found = seen(read_mesh(path))
    known = expected[:, 0] >= 0
    assert known.sum() > 15
    assert np.abs(found[known, :3] - expected[known]).max() <= 1
    assert np.abs(found[:, 3] - alpha)[known].max() <= 1
