"""Measure time and memory of the readers of user files on hostile files, each file in a process of its own.

python -m benchmarks.attacks                all cases
python -m benchmarks.attacks JPEG TIFF      cases whose name contains one of the words

The functions with an argument `folder` write a hostile file to this folder, and return the path that a reader takes.
"""

import io
import json
import os
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.config import yaml_text
from threedgen.config.errors import ConfigError
from threedgen.data.assets.listing import list_assets
from threedgen.data.assets.shards import Shards
from threedgen.data.coloured_mesh import read_mesh
from threedgen.data.files import read_npy
from threedgen.data.posed.reader import read_posed
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.image_file import load_image
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.guidance.weights import files as weights
from threedgen.guidance.weights.tokens import read_tokenizer
from threedgen.representations.gaussians.points import read_points
from threedgen.run.torch_file import read_torch

SECONDS, GIB = int(os.environ.get("ATTACK_SECONDS", 90)), 1 << 30
GLTF_START = b'{"asset":{"version":"2.0"},"extras":'
FRAME = '{"file_path":"a.png","transform_matrix":[[1,0,0,0],[0,1,0,0],[0,0,1,0]]}'


# --- images


def jpeg(folder: Path, scans: int, side: int = 8000) -> Path:
    """Write a progressive grey JPEG with `scans` empty scans of AC coefficients, in runs of up to 32,767 blocks."""
    blocks = (-(-side // 8)) ** 2

    def table(kind: int, value: int) -> bytes:
        return b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15) + bytes([value])

    bits = (blocks + 32767) // 32768  # number of runs; a run has a code of one bit and a length of 14 bits
    run = "".join("0" + "1" * 14 for _ in range(bits)) + "1" * 16
    data = int(run[: len(run) // 8 * 8], 2).to_bytes(len(run) // 8, "big").replace(b"\xff", b"\xff\0")
    repeat = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0x10) + data
    head = b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    head += b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0) + table(0, 0) + table(0x10, 0xE0)
    first = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0) + bytes(blocks // 8 + 8)
    path = folder / "a.jpg"
    with path.open("wb") as file:
        file.write(head + first)
        for _ in range(scans // 1000):
            file.write(repeat * 1000)
        file.write(b"\xff\xd9")
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(folder: Path, middle: Callable[[], bytes]) -> Path:
    start = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(start, "PNG")
    data, path = start.getvalue(), folder / "a.png"
    path.write_bytes(data[:33] + middle() + data[33:])
    return path


def sparse_png(folder: Path) -> Path:
    """Write a PNG as a sparse file of 20 GiB, with the header of a chunk of 2 GB before the pixels."""
    path = png(folder, lambda: b"")
    data = path.read_bytes()
    path.write_bytes(data[:33] + struct.pack(">I", 0x7FFFFFFF) + b"abCd")
    os.truncate(path, 20 * GIB)
    return path


def sparse_image(folder: Path, suffix: str) -> Path:
    path = folder / f"a{suffix}"
    Image.new("RGB", (64, 64), "red").save(path)
    os.truncate(path, 20 * GIB)
    return path


def tiff(folder: Path, rows: int) -> Path:
    """Write a TIFF with `rows` rows, each in a strip of its own."""
    path = folder / "a.tif"
    entries = [(256, 3, 1, 6), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, rows, 200),
               (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, rows, 200 + 4 * rows)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    offsets, sizes = np.full(rows, 8, "<u4").tobytes(), np.full(rows, 6, "<u4").tobytes()
    path.write_bytes(head.ljust(200, b"\0") + offsets + sizes)
    return path


def tiff_pages(folder: Path, count: int = 200) -> Path:
    page, path = Image.new("L", (64, 64)), folder / "a.tif"
    page.save(path, save_all=True, append_images=[page] * count)
    return path


def bmp(folder: Path, side: int = 7900) -> Path:
    """Write a BMP with RLE8 compression in which each run has one pixel."""
    path = folder / "a.bmp"
    body = (b"\1\0" * side + b"\0\0") * side
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0) + bytes(1024)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body)
    return path


def ppm(folder: Path, side: int = 7900) -> Path:
    path = folder / "a.png"  # the suffix does not matter
    path.write_bytes(b"P6 %d %d 254\n" % (side, side) + bytes(3 * side * side))
    return path


def ascii_ppm(folder: Path, side: int = 7900) -> Path:
    path = folder / "a.png"
    path.write_bytes(b"P3 %d %d 255\n" % (side, side) + b"0 " * (3 * side * side))
    return path


def dds(folder: Path, side: int = 7900) -> Path:
    """Write a DDS image whose colour channels have masks of 10 bits."""
    path = folder / "a.png"
    head = b"DDS " + struct.pack("<7I", 124, 0x1007, side, side, 0, 0, 0) + bytes(44)
    head += struct.pack("<8I", 32, 0x40, 0, 32, 0x3FF, 0xFFC00, 0x3FF00000, 0) + struct.pack("<5I", 0x1000, 0, 0, 0, 0)
    path.write_bytes(head + bytes(4 * side * side))
    return path


def animation(folder: Path, suffix: str, count: int, side: int = 16) -> Path:
    path, rng = folder / f"a{suffix}", np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)) for _ in range(50)]
    frames = [frames[k % 50] for k in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=10)
    return path


def gif(folder: Path, count: int = 100_000) -> Path:
    path = folder / "a.gif"
    Image.new("P", (16, 16)).save(path)
    data = path.read_bytes()
    start = data.index(b",")
    path.write_bytes(data[:start] + data[start:-1] * count + b";")
    return path


def gif_of_comments(folder: Path, count: int = 10_000_000) -> Path:
    path = folder / "a.gif"
    path.write_bytes(b"GIF89a\x08\0\x08\0\x80\0\0" + bytes(6) + b"!\xfe\1a\0" * count + b";")
    return path


def webp_canvas(folder: Path) -> Path:
    path = animation(folder, ".webp", 2)
    data = bytearray(path.read_bytes())
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (16382).to_bytes(3, "little") * 2
    path.write_bytes(data)
    return path


def exif(folder: Path) -> Path:
    """Write a PNG whose EXIF chunk has 65,000 orientation tags."""
    entries = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) * 65_000
    return png(folder, lambda: chunk(b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", 65_000) + entries + bytes(4)))


def xmp(folder: Path) -> Path:
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + b"<tiff:Orientation>" * 50_000
    return png(folder, lambda: chunk(b"iTXt", text) * 40)


def profile(folder: Path) -> Path:
    return png(folder, lambda: chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(GIB >> 1), 9)))


# --- glTF and JSON


def gltf(folder: Path, extras: Callable[[], bytes]) -> Path:
    path = folder / "a.gltf"
    with path.open("wb") as file:
        file.write(GLTF_START)
        file.write(extras())
        file.write(b"}")
    return path


def nested(depth: int, count: int) -> bytes:
    return b"[" + b",".join([b'{"a":' * depth + b"1" + b"}" * depth] * count) + b"]"


def transforms(folder: Path, text: str) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    path = folder / "transforms.json"
    path.write_text(text)
    return path


def wide_transforms(folder: Path) -> Path:
    keys = ",".join(f'"k{k}":1' for k in range(300_000))
    return transforms(folder, f'{{{keys},"fl_x":8,"frames":[{",".join([FRAME] * 10_000)}]}}')


def long_names(folder: Path, parts: int, count: int) -> Path:
    frame = FRAME.replace("a.png", "b/" * parts + "c.png")
    return transforms(folder, f'{{"fl_x":8,"frames":[{",".join([frame] * count)}]}}')


def cameras(folder: Path) -> Path:
    path = folder / "cameras.json"
    files = ",".join("1" * 10_000_000)
    path.write_text(f'{{"axes":"opengl","c2w":[],"files":[{files}]}}')
    return path


# --- COLMAP


def colmap(folder: Path, name: str, count: int, row: bytes, number: int) -> Path:
    (folder / "cameras.bin").write_bytes(struct.pack("<QIiQQ4d", 1, 1, 1, 8, 8, 8, 8, 4, 4))
    (folder / "images.bin").write_bytes(struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a.png\0" + bytes(8))
    (folder / "points3D.bin").write_bytes(bytes(8))
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", count))
        for _ in range(number // 1000):
            file.write(row * 1000)
    return folder


def colmap_text(folder: Path, name: str, line: str, number: int) -> Path:
    (folder / "cameras.txt").write_text("1 PINHOLE 8 8 8 8 4 4\n")
    (folder / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with (folder / f"{name}.txt").open("a") as file:
        for _ in range(number // 1000):
            file.write(line * 1000)
    return folder


# --- other meshes


def text_mesh(folder: Path, name: str, head: str, line: str, number: int, end: str = "") -> Path:
    path = folder / name
    with path.open("w") as file:
        file.write(head)
        for _ in range(number // 1000):
            file.write(line * 1000)
        file.write(end)
    return path


def obj_vertices(folder: Path, count: int, line: str = "v 0.123456 0.234567 0.345678\n") -> Path:
    return text_mesh(folder, "a.obj", "", line, count, "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\n")


def material(folder: Path, text: Callable[[], str], names: int = 1) -> Path:
    libraries = "".join(f"mtllib {'./' * k}a.mtl\n" for k in range(names))
    path = folder / "a.obj"
    path.write_text(libraries + "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nusemtl a\nf 1/1 2/2 3/3\n")
    (folder / "a.mtl").write_text("newmtl a\n" + text())
    return path


def gltf_sparse(folder: Path) -> Path:
    """Write a glTF file with a sparse accessor of a billion numbers, at a stride of one byte."""
    (folder / "a.bin").write_bytes(bytes(250_000_100))
    views = [{"buffer": 0, "byteLength": 250_000_100, "byteStride": 1}, {"buffer": 0, "byteLength": 100}]
    point = {"bufferView": 0, "componentType": 5126, "count": 249_999_000, "type": "VEC4"}
    point["sparse"] = {"count": 1, "indices": {"bufferView": 1, "componentType": 5121}, "values": {"bufferView": 1}}
    tree = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}], "bufferViews": views,
        "buffers": [{"uri": "a.bin", "byteLength": 250_000_100}],
        "accessors": [point, {"bufferView": 1, "componentType": 5121, "count": 3, "type": "SCALAR"}],
    }  # fmt: skip
    path = folder / "a.gltf"
    path.write_text(json.dumps(tree))
    return path


# --- arrays, weights, tables


def npy(folder: Path, header: str, data: bytes = b"") -> Path:
    text = header.encode().ljust(117) + b"\n"
    path = folder / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data)
    return path


def shape(text: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {text}, }}"


def torch_zip(folder: Path, pickled: Callable[[], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "a.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled())
        archive.writestr("archive/version", "3\n")
    return path


def safetensors(folder: Path, size: int, entry: Callable[[int], str]) -> Path:
    parts, length, k = list[str](), 2, 0
    while length < size:
        parts.append(entry(k))
        length, k = length + len(parts[-1]) + 1, k + 1
    head = ("{" + ",".join(parts) + "}").encode()
    path = folder / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    return path


def tokenizer(folder: Path, name: str, text: Callable[[], str]) -> Path:
    (folder / "vocab.json").write_text('{"<|startoftext|>":0,"<|endoftext|>":1,"a":2}')
    (folder / "merges.txt").write_text("#version\n")
    if name == "tokenizer.json":
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class":"PreTrainedTokenizerFast"}')
    (folder / name).write_text(text())
    return folder


def shard(folder: Path, members: int) -> Path:
    block, path = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT), folder / "a.tar"
    with path.open("wb") as file:
        for _ in range(members // 1000):
            file.write(block * 1000)
        file.write(bytes(1024))
    asset = {"name": "a", "file": "a.glb", "caption": "a", "notes": []}
    index = {"azimuths": 1, "rings": 1, "shards": [{"file": "a.tar", "bytes": path.stat().st_size, "assets": [asset]}]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def captions(folder: Path, text: Callable[[], str]) -> Path:
    for k in range(1000):
        (folder / f"mesh-{k:04}.obj").touch()
    (folder / "captions.csv").write_text(text())
    return folder


def read_shard(path: Path) -> object:
    shards = Shards(path)
    return shards.metadata(shards.entries[0])


def texture(path: Path) -> object:
    return load_image(path, max_side=1024)


def listed(path: Path) -> object:
    return len(list_assets(path, "captions.csv").assets)


def points(path: Path) -> object:
    return len(read_points(path, 1000, 1e9).positions)


Case = tuple[Callable[[Path], Path], Callable[[Path], object]]
CASES: dict[str, Case] = {
    "JPEG of 8,000 x 8,000 with 1,000 scans": (lambda f: jpeg(f, 1000), texture),
    "JPEG of 8,000 x 8,000 with 20,000 scans": (lambda f: jpeg(f, 20_000), texture),
    "PNG with a chunk of 2 GB (sparse)": (sparse_png, texture),
    "PNG with 600 texts of 1 MB": (
        lambda f: png(f, lambda: chunk(b"tEXt", b"a\0" + bytes(1_000_000)) * 600), texture),
    "PNG with 3 million empty chunks": (lambda f: png(f, lambda: chunk(b"abCd", b"") * 3_000_000), texture),
    "PNG with 65,000 orientations": (exif, texture),
    "PNG with 2 million XMP orientations": (xmp, texture),
    "PNG with a colour profile of 512 MB": (profile, texture),
    "APNG of 1,000 frames": (lambda f: animation(f, ".png", 1000), texture),
    "GIF of 100,000 frames": (gif, texture),
    "GIF of 10 million comments, no image": (gif_of_comments, texture),
    "WebP of 1,000 frames": (lambda f: animation(f, ".webp", 1000), texture),
    "WebP animation of 16,383 x 16,383": (webp_canvas, texture),
    "WebP of 20 GB (sparse)": (lambda f: sparse_image(f, ".webp"), texture),
    "AVIF of 20 GB (sparse)": (lambda f: sparse_image(f, ".avif"), texture),
    "AVIF of 100 frames": (lambda f: animation(f, ".avif", 100, 64), texture),
    "TIFF with 10 million strips": (lambda f: tiff(f, 10_000_000), texture),
    "TIFF with 200 pages": (tiff_pages, texture),
    "BMP of 7,900 x 7,900, runs of 1 pixel": (bmp, texture),
    "PPM of 7,900 x 7,900 with 254 levels": (ppm, texture),
    "PPM of 7,900 x 7,900 as text": (ascii_ppm, texture),
    "DDS of 7,900 x 7,900 with 10-bit masks": (dds, texture),
    "glTF: a text of 1 GB": (lambda f: gltf(f, lambda: b'"' + b"a" * (GIB - 100) + b'"'), read_mesh),
    "glTF: a text of 250 MB with an emoji": (
        lambda f: gltf(f, lambda: '"🐕'.encode() + b"a" * 250_000_000 + b'"'), read_mesh),
    "glTF: 1 GB of nested objects": (lambda f: gltf(f, lambda: nested(900, 190_000)), read_mesh),
    "glTF: 9 million objects": (lambda f: gltf(f, lambda: nested(1, 9_000_000)), read_mesh),
    "glTF: an array 1 million deep": (lambda f: gltf(f, lambda: b"[" * 1_000_000 + b"]" * 1_000_000), read_mesh),
    "glTF: sparse accessor of a billion numbers, stride 1": (gltf_sparse, read_mesh),
    "transforms.json: 60 MB of nested objects": (
        lambda f: transforms(f, nested(900, 11_000).decode()), read_posed),
    "transforms.json: 300,000 keys, 10,000 frames": (wide_transforms, read_posed),
    "transforms.json: a path of 20 million parts": (lambda f: long_names(f, 20_000_000, 1), read_posed),
    "transforms.json: 10,000 paths of 2,000 parts": (lambda f: long_names(f, 2000, 10_000), read_posed),
    "transforms.json: 500,000 missing photos": (lambda f: long_names(f, 8, 500_000), read_posed),
    "cameras.json: 10 million wrong names": (cameras, lambda p: read_cameras(p, "rig.file")),
    "COLMAP: 2^63 cameras": (lambda f: colmap(f, "cameras.bin", 1 << 63, b"", 0), read_posed),
    "COLMAP: 1 GB of cameras": (
        lambda f: colmap(f, "cameras.bin", 19_000_000, struct.pack("<IiQQ4d", 1, 1, 8, 8, 8, 8, 4, 4), 19_000_000),
        read_posed),
    "COLMAP: 1 GB of images": (
        lambda f: colmap(
            f, "images.bin", 13_000_000, struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a.png\0" + bytes(8),
            13_000_000),
        read_posed),
    "COLMAP: 1 GB of points": (
        lambda f: colmap(f, "points3D.bin", 20_000_000, bytes(51), 20_000_000), read_posed),
    "COLMAP as text: 1 GB of cameras": (
        lambda f: colmap_text(f, "cameras", "1 PINHOLE 8 8 8 8 4 4\n", 47_000_000), read_posed),
    "COLMAP as text: 19 million images": (
        lambda f: colmap_text(f, "images", "1 1 0 0 0 0 0 0 1 a.png\n\n", 9_500_000), read_posed),
    "COLMAP as text: 1 GB of keypoints in one line": (
        lambda f: colmap_text(f, "images", "1 1 -1 ", 150_000_000), read_posed),
    "COLMAP as text: 1 GB of points": (
        lambda f: colmap_text(f, "points3D", "1 0.1 0.2 0.3 255 255 255 0.5 1 2 3 4 5 6\n", 19_000_000), read_posed),
    "OBJ: 15 million vertices": (lambda f: obj_vertices(f, 15_000_000), read_mesh),
    "OBJ: 19 million vertices": (lambda f: obj_vertices(f, 19_000_000), read_mesh),
    "OBJ: 12 million vertices, every second line vt": (
        lambda f: obj_vertices(f, 6_000_000, "v 0.123456 0.234567 0.345678\nvt 0.1 0.2\n"), read_mesh),
    "OBJ: a vertex of 500 million numbers": (
        lambda f: text_mesh(f, "a.obj", "v", " 1", 500_000_000, "\n"), read_mesh),
    "OBJ: 1 GB of comments": (lambda f: obj_vertices(f, 15_000_000, "#" + 64 * "x" + "\n"), read_mesh),
    "MTL: 3 million options in one line": (lambda f: material(f, lambda: "map_Kd " + "-s 1 " * 3_000_000), read_mesh),
    "MTL of 16 MB under 200 names": (lambda f: material(f, lambda: "\n" * 16_000_000, 200), read_mesh),
    "PLY: 500 million numbers as text": (
        lambda f: text_mesh(
            f, "a.ply", "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
            "property float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n", "0 ",
            500_000_000),
        read_mesh),
    "OFF: one line of 500 million numbers": (
        lambda f: text_mesh(f, "a.off", "OFF\n", "0 ", 500_000_000), read_mesh),
    "STL as text: 80 million vertices without facets": (
        lambda f: text_mesh(f, "a.stl", "solid\nfacet\n", "vertex 0 0 0\n", 80_000_000),
        read_mesh_file),
    "point cloud: OBJ of 1 GB": (lambda f: obj_vertices(f, 38_000_000), points),
    "point cloud: text of 1 GB": (lambda f: text_mesh(f, "a.xyz", "", "0.1 0.2 0.3\n", 85_000_000), points),
    "point cloud: glTF of 1 GB": (lambda f: gltf(f, lambda: nested(900, 190_000)), points),
    "npy: shape of 10^9": (lambda f: npy(f, shape("(1000000000,)")), read_npy),
    "npy: shape of 10^18": (lambda f: npy(f, shape("(10**6, 10**6)".replace("10**6", "1000000"))), read_npy),
    "npy: 10^18 values without size": (lambda f: npy(f, shape("(1000000000000000000,)", "|V0")), read_npy),
    "npy: negative shape": (lambda f: npy(f, shape("(-1000000000, -1000000000)")), read_npy),
    "npy: 60 MB of objects": (lambda f: npy(f, shape("(7000000,)", "|O"), bytes(60_000_000)), read_npy),
    "torch: pickle of 31 MB of small codes": (
        lambda f: torch_zip(f, lambda: b"\x80\2" + b"]0" * 15_500_000 + b"}."), read_torch),
    "torch: the same, names of tensors": (
        lambda f: torch_zip(f, lambda: b"\x80\2" + b"]0" * 15_500_000 + b"}."), weights.read_header),
    "torch: pickle of 31 MB of nested lists": (
        lambda f: torch_zip(f, lambda: b"\x80\2" + b"]" * 15_000_000 + b"a" * 14_999_999 + b"."), read_torch),
    "torch: zip bomb of 4 GB": (
        lambda f: torch_zip(f, lambda: bytes(4 * GIB - 1000), zipfile.ZIP_DEFLATED), read_torch),
    "safetensors: header of 99 MB, empty tensors": (
        lambda f: safetensors(f, 99_000_000, lambda k: f'"{k}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        weights.read_tensors),
    "safetensors: header of 99 MB, metadata": (
        lambda f: safetensors(
            f, 90_000_000, lambda k: '"__metadata__":{' + ",".join(f'"{n}":""' for n in range(7_500_000)) + "}"),
        weights.read_header),
    "tokenizer.json of 500 MB": (
        lambda f: tokenizer(f, "tokenizer.json", lambda: '{"a":[' + "1," * 250_000_000 + "1]}"), read_tokenizer),
    "vocab.json of 500 MB": (
        lambda f: tokenizer(f, "vocab.json", lambda: "{" + ",".join(f'"{k}":{k}' for k in range(25_000_000)) + "}"),
        read_tokenizer),
    "merges.txt of 500 MB": (
        lambda f: tokenizer(f, "merges.txt", lambda: "#version\n" + "a b\n" * 125_000_000), read_tokenizer),
    "shard of 2 million members": (lambda f: shard(f, 2_000_000), read_shard),
    "captions.csv: 500,000 missing meshes": (
        lambda f: captions(f, lambda: "file,caption\n" + "".join(f"mish-{k}.obj,a\n" for k in range(500_000))), listed),
    "captions.csv: a name of 60 MB": (
        lambda f: captions(f, lambda: "file,caption\n" + "\n".join(["m" * 100_000 + ",a"] * 600)), listed),
    "captions.csv: 30 million columns": (lambda f: captions(f, lambda: "a," * 30_000_000), listed),
    "captions.csv: 60 million quotes": (lambda f: captions(f, lambda: '"' * 60_000_000), listed),
    "YAML: 1 MB of brackets": (
        lambda f: text_mesh(f, "a.yaml", "", "[]\n", 330_000), yaml_text.read),
    "YAML: a text of 1 MB in quotes, folded": (
        lambda f: text_mesh(f, "a.yaml", 'a: "', "a\n ", 330_000, '"'), yaml_text.read),
}  # fmt: skip


def measure(make: Callable[[Path], Path], read: Callable[[Path], object]) -> tuple[str, float, float]:
    """Create a hostile file with `make`, and read it with `read` in a forked process with limits of time and memory.

    Returns the outcome as text, the CPU time in seconds, and the growth of the peak memory in MiB. If the process was
    killed, the memory is that of the whole process.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "place")
        folder.mkdir()
        if not (maker := os.fork()):  # makes the file, so that this process stays small
            Path(temporary, "path").write_text(str(make(folder)))
            os._exit(0)
        os.waitpid(maker, 0)
        path = Path(Path(temporary, "path").read_text())
        receive, send = os.pipe()
        if not (pid := os.fork()):
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (16 * GIB, 16 * GIB))
            signal.alarm(10 * SECONDS)
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            try:
                said = f"read: {str(read(path))[:60]!r}"
            except ConfigError as error:
                said = f"refused: {error.problem}"
            except BaseException as error:
                said = f"EXCEPTION {type(error).__name__}: {str(error)[:200]}"
            seconds = time.process_time() - start
            growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(send, json.dumps((said.replace(str(folder), "..."), seconds, growth)).encode()[:4000])
            os._exit(0)
        os.close(send)
        with open(receive, "rb") as pipe:
            text = pipe.read()
        _, status, usage = os.wait4(pid, 0)
    if text:
        said, seconds, growth = json.loads(text)
        return said, seconds, growth
    return f"NO END (status {status})", usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    with suppress(Exception):
        read_tokenizer(Path("/nonexistent"))  # imports the libraries before the first measurement
    print("| input | result | CPU s | MiB |\n|---|---|---|---|")
    for name, (make, read) in CASES.items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        said, seconds, growth = measure(make, read)
        print(f"| {name} | {said[:160]} | {seconds:.1f} | {growth:.0f} |", flush=True)
