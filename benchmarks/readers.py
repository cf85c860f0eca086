"""Measure time and memory of the mesh readers on hostile and huge files, each file in a process of its own.

python -m benchmarks.readers            all cases
python -m benchmarks.readers "MTL is"   cases whose name contains the text

The functions with an argument `folder` write the files of a case to this folder, and return the path of the mesh.
"""

import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError
from threedgen.data.coloured_mesh import read_mesh
from threedgen.systems.sample.mesh import MeshFrame, read_source

SECONDS = 90
CORNERS = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
OBJ = "".join("v {} {} {}\n".format(*corner) for corner in CORNERS) + "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
PLY = "ply\nformat ascii 1.0\n{}element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
PLY += (
    "element face 2\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"
)


def obj(folder: Path, material: str = "", body: str = FACE) -> Path:
    path = folder / "mesh.obj"
    path.write_text(f"mtllib mesh.mtl\n{OBJ}usemtl a\n{body}")
    if material:
        (folder / "mesh.mtl").write_text(f"newmtl a\n{material}\n")
    return path


def gltf(folder: Path, nodes: list[dict[str, object]] | None = None) -> Path:
    data = np.array(CORNERS, "<f4").tobytes() + np.array([0, 1, 2, 0, 2, 3], "<u4").tobytes()
    (folder / "mesh.bin").write_bytes(data)
    views = [{"buffer": 0, "byteOffset": start, "byteLength": size} for start, size in ((0, 48), (48, 24))]
    kinds = [(5126, 4, "VEC3"), (5125, 6, "SCALAR")]
    accessors = [{"bufferView": k, "componentType": c, "count": n, "type": t} for k, (c, n, t) in enumerate(kinds)]
    tree = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": nodes or [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"uri": "mesh.bin", "byteLength": len(data)}], "bufferViews": views, "accessors": accessors,
    }  # fmt: skip
    path = folder / "mesh.gltf"
    path.write_text(json.dumps(tree))
    return path


def fifo(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def sparse(path: Path) -> Path:
    path.touch()
    os.truncate(path, 20 << 30)
    return path


def texture(folder: Path, side: int, mode: str) -> Path:
    Image.new(mode, (side, side)).save(folder / "a.png")
    return obj(folder, "map_Kd a.png")


def deep_nodes(folder: Path) -> Path:
    return gltf(folder, [{"children": [k + 1]} for k in range(100_000)] + [{"mesh": 0}])


def wide_nodes(folder: Path) -> Path:
    return gltf(folder, [{"children": list(range(1, 300_001))}] + [{"mesh": 0}] * 300_000)


def with_replaced_file(folder: Path, change: Callable[[Path], object], name: str, make: Callable[[Path], Path]) -> Path:
    path = make(folder)
    change(folder / name)
    return path


def ply(folder: Path, header: str) -> Path:
    path = folder / "mesh.ply"
    path.write_text(PLY.format(header))
    return path


def textured_ply(folder: Path) -> Path:
    return ply(folder, "comment TextureFile a.png\n")


def outside(folder: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(folder.parent / "outside.png")
    return obj(folder, "map_Kd ../outside.png")


def polygon(folder: Path) -> Path:
    angle = np.linspace(0, 2 * np.pi, 1_000_000, endpoint=False)
    lines = [f"v {x:.7f} {y:.7f} 0" for x, y in zip(np.cos(angle), np.sin(angle), strict=True)]
    path = folder / "mesh.obj"
    path.write_text("\n".join(lines) + "\nf " + " ".join(map(str, range(1, 1_000_001))) + "\n")
    return path


def many_triangles(folder: Path) -> Path:
    rng, count = np.random.default_rng(0), 6_000_000
    path = folder / "mesh.stl"
    data = np.zeros(count, [("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")])
    data["v"] = rng.random((count, 3, 3), np.float32)
    path.write_bytes(b" " * 80 + struct.pack("<I", count) + data.tobytes())
    return path


CASES: dict[str, Callable[[Path], Path]] = {
    "glTF buffer is a FIFO": lambda f: with_replaced_file(f, fifo, "mesh.bin", gltf),
    "MTL is a FIFO": lambda f: with_replaced_file(f, fifo, "mesh.mtl", obj),
    "map_Kd is a FIFO": lambda f: with_replaced_file(f, fifo, "a.png", lambda g: obj(g, "map_Kd a.png")),
    "TextureFile of a PLY is a FIFO": lambda f: with_replaced_file(f, fifo, "a.png", textured_ply),
    "glTF buffer of 20 GB": lambda f: with_replaced_file(f, sparse, "mesh.bin", gltf),
    "MTL of 20 GB": lambda f: with_replaced_file(f, sparse, "mesh.mtl", obj),
    "map_Kd of 20 GB": lambda f: with_replaced_file(f, sparse, "a.png", lambda g: obj(g, "map_Kd a.png")),
    "map_Kd ../outside.png": outside,
    "texture 13,300 x 13,300, 1 bit": lambda f: texture(f, 13_300, "1"),
    "texture 9,000 x 9,000": lambda f: texture(f, 9_000, "RGB"),
    "texture 7,900 x 7,900": lambda f: texture(f, 7_900, "RGB"),
    "100,000 nodes deep": deep_nodes,
    "300,000 nodes that show one box": wide_nodes,
    "face of a million corners": polygon,
    "2 million usemtl lines": lambda f: obj(f, "Kd 1 0 0", "usemtl a\nusemtl b\n" * 1_000_000 + FACE),
    "6 million triangles": many_triangles,
    "NaN corner": lambda f: obj(f, "", "v nan 0 0\nf 1 2 5\n" + FACE),
    "PLY header of 50 MB": lambda f: ply(f, ("comment " + "x" * 992 + "\n") * 50_000),
}  # fmt: skip


def read(path: Path, coloured: bool) -> str:
    """Read a mesh as a training asset if `coloured` is True, else as a mesh to texture. Return the outcome as text."""
    try:
        if coloured:
            mesh = read_mesh(path)
            return "read" + (f" ({'; '.join(mesh.notes)})" if mesh.notes else "")
        return f"read, {len(read_source(path, MeshFrame()).faces):,} triangles"
    except ConfigError as error:
        return f"refused: {error.problem}"


def measure(make: Callable[[Path], Path], coloured: bool) -> tuple[str, float, float]:
    """Create the files of a case with `make`, and read them with `read` in a forked process for at most SECONDS.

    Returns the outcome as text, the duration in seconds, and the growth of the peak memory in MiB, which is NaN if the
    process was killed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "place")
        folder.mkdir()
        path = make(folder)
        receive, send = os.pipe()
        if not (pid := os.fork()):
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
            signal.alarm(SECONDS)  # ends also a reader that waits and uses no CPU time
            said = read(path, coloured)
            growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            answer = said.replace(str(folder), "..."), time.monotonic() - start, growth
            os.write(send, json.dumps(answer).encode()[:4000])
            os._exit(0)
        os.close(send)
        with open(receive, "rb") as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
    said, seconds, growth = json.loads(text) if text else (f"no end in {SECONDS} s", float(SECONDS), float("nan"))
    return said, seconds, growth


if __name__ == "__main__":
    print("| input | as | result | s | MiB |\n|---|---|---|---|---|")
    for name, make in CASES.items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        for coloured in (True, False):
            said, seconds, growth = measure(make, coloured)
            kind = "asset" if coloured else "to texture"
            print(f"| {name} | {kind} | {said[:160]} | {seconds:.1f} | {growth:.0f} |", flush=True)
