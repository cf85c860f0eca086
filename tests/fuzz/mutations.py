"""Random damage to files: their bytes, their place in the file system, or the data in them.

description = damage(path, random.Random(7))
"""

import io
import json
import os
import pickle
import random
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.errors import Trap

TRAP = "code-was-run"  # name of a folder that appears next to the damaged file if code in the file was executed
NEIGHBOUR = "thesis.docx"  # name of an unrelated file, which damaged data may refer to
NAN, INF = float("nan"), float("inf")
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**9, 10**40, 0.5, 1e-300, 1e200, 1e308, NAN, INF, -INF, "",
    " ", "nan", "1e400", "a" * 5000, "\x1b[31mred\x1b]0;title\x07", "a\nb", "\0", "../../../etc/passwd", "/dev/zero",
    "~nobody/x", "dog", "\u202egod", [], {}, [[]], [0] * 1000, {"name": "mvdream"}, {"a" * 300: 1}, [None], [NAN],
)  # fmt: skip
"""Values that readers may not expect."""


def damage(path: Path, rng: random.Random) -> str:
    """Damage the file and return a description; 60 % of the damages to known file types change the data in them."""
    inner = KINDS.get(path.suffix.lower())
    if inner and rng.random() < 0.6:
        try:
            return f"{path.name}: {inner(path, rng)}"
        except Exception as error:  # the file type cannot store the value
            path.write_bytes(noise(rng))
            return f"{path.name}: noise instead of {type(error).__name__}"
    if rng.random() < 0.25:
        name, replace = rng.choice(list(PLACES.items()))
        replace(path)
        return f"{path.name}: {name}"
    name, change = rng.choice(list(BYTES.items()))
    path.write_bytes(change(path.read_bytes(), rng))
    return f"{path.name}: {name}"


def noise(rng: random.Random, most: int = 2000) -> bytes:
    return rng.randbytes(rng.randint(1, most))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 8, 100))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _splice(data: bytes, rng: random.Random, middle: Callable[[bytes], bytes]) -> bytes:
    a = rng.randrange(len(data) + 1)
    b = min(len(data), a + rng.choice((1, 4, 64, 4096)))
    return data[:a] + middle(data[a:b]) + data[b:]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": _flip,
    "cut off": lambda data, rng: data[: rng.randrange(len(data) + 1)],
    "start lost": lambda data, rng: data[rng.randrange(len(data) + 1) :],
    "block lost": lambda data, rng: _splice(data, rng, lambda part: b""),
    "block repeated": lambda data, rng: _splice(data, rng, lambda part: part * 2),
    "noise inside": lambda data, rng: _splice(data, rng, lambda part: noise(rng, 50)),
    "only noise": lambda data, rng: noise(rng),
    "empty": lambda data, rng: b"",
    "a web page": lambda data, rng: b"<!DOCTYPE html><html>404</html>",
    "a pickle that runs code": lambda data, rng: pickle.dumps(Trap(Path(TRAP))),
    "a torch file that runs code": lambda data, rng: _torch_bytes({"state_dict": Trap(Path(TRAP))}),
    "deep brackets": lambda data, rng: b"[" * 100_000,
    "many keys": lambda data, rng: b"".join(b"k%d: 1\n" % k for k in range(60_000)),
}


def _torch_bytes(tree: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


def _replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def _socket(path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # names of sockets have at most 107 bytes
        socket.socket(socket.AF_UNIX).bind(f"{place}/a")
        os.replace(f"{place}/a", path)


PLACES: dict[str, Callable[[Path], None]] = {
    "lost": Path.unlink,
    "a folder": _replace_by(Path.mkdir),
    "a FIFO": _replace_by(os.mkfifo),
    "a socket": _socket,
    "a link to itself": _replace_by(lambda path: path.symlink_to(path)),
    "a link to nothing": _replace_by(lambda path: path.symlink_to("nothing")),
    "an endless device": _replace_by(lambda path: path.symlink_to("/dev/zero")),
    "20 GB of zeros": lambda path: os.truncate(path, 20 << 30),
    "a link to another folder": lambda path: path.symlink_to(path.rename(Path(tempfile.mkdtemp()) / path.name)),
}


def mutate(tree: Any, rng: random.Random) -> str:
    """Change one value or key of nested dicts and lists of values and tensors; return a description."""
    entries = _entries(tree)
    if not entries:
        return "nothing"
    holder, key = rng.choice(entries)
    old, label = holder[key], str(key)[:40]
    how = rng.random()
    if isinstance(old, Tensor) and how < 0.75:
        name, change = rng.choice(list(TENSORS.items()))
        holder[key] = change(old)
        return f"{label} {name}"
    if isinstance(holder, dict) and how < 0.15:
        del holder[key]
        return f"{label} lost"
    if isinstance(holder, dict) and how < 0.25:
        holder[rng.choice((f"{key}x", "a.b", NEIGHBOUR))] = holder.pop(key)
        return f"{label} renamed"
    if isinstance(old, bool) or not isinstance(old, (int, float)) or how < 0.7:
        holder[key] = rng.choice(HOSTILE)
    else:
        holder[key] = old * rng.choice((-1, 0, 2, 10, 1000, 10**6, 10**9))
    return f"{label} = {holder[key]!r:.40}"


def _entries(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every nested value."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    found = [(tree, key) for key, _ in items]
    for _, value in items:
        found += _entries(value)
    return found


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda t: torch.full_like(t, NAN) if t.is_floating_point() else t,
    "one infinity": lambda t: t.clone().reshape(-1).index_fill(0, torch.tensor(0), INF).reshape(t.shape),
    "1e30": lambda t: torch.full_like(t.float(), 1e30),
    "of another shape": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]),
    "empty": lambda t: t.reshape(-1)[:0],
    "whole numbers": lambda t: t.long(),
    "booleans": lambda t: t != 0,
    "complex": lambda t: t + 1j,
    "sparse": lambda t: t.to_sparse(),
    "on the meta device": lambda t: t.to("meta"),
    "of 16 GiB by expansion": lambda t: torch.zeros(1).expand(2**32),
}


def _tree(read: Callable[[Path], Any], write: Callable[[Any, Path], object]) -> Callable[[Path, random.Random], str]:
    """Return a function that mutates one value of a file."""

    def change(path: Path, rng: random.Random) -> str:
        tree = read(path)
        change = mutate(tree, rng)
        write(tree, path)
        return change

    return change


def _safetensors(path: Path, rng: random.Random) -> str:
    if rng.random() < 0.4:  # header
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change = mutate(header, rng)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        return f"header, {change}"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors: dict[str, Any] = load_file(path)
    change = mutate(tensors, rng)
    kept = {name: value.contiguous() for name, value in tensors.items() if isinstance(value, Tensor)}
    if any(value.numel() > 1e8 for value in kept.values()):
        return _safetensors(path, rng)
    save_file(kept, path, metadata)
    return change


def _text(path: Path, rng: random.Random) -> str:
    """Replace one word of a text, such as a number in a matrix or an override."""
    lines = [line.split(" ") for line in path.read_text().splitlines()] or [[""]]
    line = rng.choice(lines)
    k = rng.randrange(len(line))
    value = rng.choice(HOSTILE)
    word = value if isinstance(value, str) else json.dumps(value)
    key, equals, _ = line[k].partition("=")
    line[k] = key + equals + word if equals else word
    path.write_text("\n".join(map(" ".join, lines)) + "\n")
    return f"word = {word!r:.40}"


def _image(path: Path, rng: random.Random) -> str:
    """Save the image tiny, without visible pixels, or with a huge size in its header."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    clear = image.copy()
    clear.putalpha(0)
    variants = {
        "one pixel": image.resize((1, 1)), "a line": image.resize((3000, 1)), "enormous": image, "clear": clear,
    }  # fmt: skip
    name = rng.choice(list(variants))
    variants[name].save(path, format="PNG")
    if name == "enormous":
        data = bytearray(path.read_bytes())
        side = rng.choice((5000, 30_000, 2**31 - 1))
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path.write_bytes(data)
    return name


def _glb(path: Path, rng: random.Random) -> str:
    """Mutate the JSON chunk of a GLB."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    tree, rest = json.loads(data[20 : 20 + length]), data[20 + length :]
    change = mutate(tree, rng)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + rest
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
    return change


_json = _tree(lambda path: json.loads(path.read_text()), lambda tree, path: path.write_text(json.dumps(tree)))
KINDS: dict[str, Callable[[Path, random.Random], str]] = {
    ".pt": _tree(lambda path: torch.load(path, weights_only=True), torch.save),
    ".json": _json,
    ".gltf": _json,
    ".yaml": _tree(
        lambda path: yaml.safe_load(path.read_text()),
        lambda tree, path: path.write_text(yaml.safe_dump(tree, allow_unicode=True)),
    ),
    ".jsonl": _tree(
        lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        lambda rows, path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)),
    ),
    ".safetensors": _safetensors, ".txt": _text, ".obj": _text, ".mtl": _text, ".ply": _text,
    ".off": _text, ".png": _image, ".jpg": _image, ".glb": _glb,
}  # fmt: skip
"""File suffix -> change of the data in the file. Of checkpoints only bytes are changed: runs write their own."""
