"""List what the readers of user files return for a folder: meshes, photos, prompts, captions, LoRAs, embeddings.

The modules of the readers are imported by name, so that the file also runs in an older checkout, for a comparison.
"""

import importlib
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from threedgen.config.errors import ConfigError

from .table import Row, Table

MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".bmp")
VIEW_SIZE, MIN_SHARE, COLOUR_DISTANCE = 48, 0.05, 24
"""Side of the views in pixels; smallest fraction of the pixels with a listed colour; difference of two colours, in
levels of 255 per channel, below which they count as equal."""


def table(data: Path) -> Table:
    """Return a row with the reader's result for each file in the folder `data`.

    Files that other files name, such as textures, have no row. Raises ConfigError if `data` is not a folder.
    """
    if not data.is_dir():
        raise ConfigError("is not a folder of files. Give --data FOLDER", "data", str(data))
    files = sorted(path for path in data.rglob("*") if path.is_file())
    named = {path for path in files if any(other.suffix in (".gltf", ".obj") for other in path.parent.iterdir())}
    named |= {path for path in files if path.parent.name == "textures"}
    rows: list[Row] = [
        {"file": path.relative_to(data).as_posix(), "result": describe(path)}
        for path in files
        if path not in named or path.suffix in MESHES
    ]
    return Table(f"Files in {data}", [row for row in rows if row["result"]])


def describe(path: Path) -> str:
    """Return one line about the content of a file, or the error of its reader; "" for a file type without a reader."""
    notes, logger = list[str](), logging.getLogger("threedgen")
    handler: Any = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())
    logger.addHandler(handler)
    try:
        found = _content(path)
    except ConfigError as error:
        found = f"refused: {error}"
    except Exception as error:  # a fault of the reader is a result too
        found = f"{type(error).__name__}: {error}"
    finally:
        logger.removeHandler(handler)
    lines = [found, *(f"warning: {note}" for note in dict.fromkeys(notes))]
    return "; ".join(lines).replace(f"{path.parent}/", "").replace("\n", " ").replace("|", "/") if found else ""


def _content(path: Path) -> str:
    kind = path.suffix.lower()
    if kind in MESHES:
        return _mesh(path)
    if kind in PHOTOS:
        (image,) = _module("data.photos").read([path], 64)
        return f"{_colours(image.reshape(-1, 3))} with its background"
    if kind == ".txt":
        options = SimpleNamespace(prompts=str(path))
        return ", ".join(map(repr, _module("systems.batch.options").BatchConfig.lines(options)[:3]))
    if kind == ".csv":
        listing = _module("data.assets.options", "data.assets.listing").list_assets(path.parent, str(path))
        named = [f"{asset.file}: {asset.caption!r}" for asset in listing.assets[:2]]
        return ", ".join([*named, *(f"left out {k}: {v}" for k, v in listing.left_out.items())][:3])
    if kind in (".safetensors", ".pt"):
        return _weights(path)
    return ""


def _module(*names: str) -> Any:
    for name in names:
        try:
            module = importlib.import_module(f"threedgen.{name}")
        except ImportError:
            continue
        if name != "data.assets.options" or hasattr(module, "list_assets"):
            return module
    raise ImportError(names[0])


def _mesh(path: Path) -> str:
    from threedgen.geometry.poses import orbit_array

    mesh = _module("data.coloured_mesh").read_mesh(path)
    corners = mesh.corners.reshape(-1, 3)
    low, high = corners.min(0), corners.max(0)
    fitted = [
        replace(part, corners=(part.corners - (low + high) / 2) / np.linalg.norm(high - low)) for part in mesh.parts
    ]
    centred = type(mesh)(tuple(fitted))
    azimuth = np.linspace(0, 2 * np.pi, 4, endpoint=False)
    c2w = orbit_array(np.full(4, 0.5), azimuth, np.full(4, 2.5))
    black, white = (centred.render(c2w, 0.5, VIEW_SIZE, grey) for grey in (0.0, 1.0))
    solid = (white - black).max(-1) < 0.02
    size = " x ".join(f"{x:.3g}" for x in high - low)
    found = f"{len(mesh.corners)} triangles, {size}, {_colours(np.round(255 * black[solid]))}"
    return "; ".join([found, *(f"note: {note}" for note in getattr(mesh, "notes", ()))])


def _colours(pixels: Any) -> str:
    """List the frequent colours of pixels (N, 3) in [0, 255], most frequent first."""
    counts, found = Counter(map(tuple, np.asarray(pixels, int).tolist())), dict[tuple[int, ...], int]()
    for colour, count in counts.most_common():
        near = (
            known for known in found if max(abs(a - b) for a, b in zip(colour, known, strict=True)) < COLOUR_DISTANCE
        )
        nearest = next(near, colour)
        found[nearest] = found.get(nearest, 0) + count
    common = [colour for colour, count in found.items() if count >= MIN_SHARE * len(pixels)]
    return " ".join("#" + "".join(f"{x:02x}" for x in colour) for colour in common[:4]) or "no pixels"


def _weights(path: Path) -> str:
    from threedgen.guidance.priors.options import StableDiffusionConfig

    key = "embeddings" if path.stem in ("easynegative", "ti") else "loras"
    StableDiffusionConfig(weights="model", **{key: [str(path)]})  # an older checkout has no such option
    additions = _module("guidance.weights.additions")
    if key == "embeddings":
        word, vectors = additions.read_embedding(path)
        shapes = [" x ".join(map(str, v.shape)) for v in vectors if v is not None]
        return f"word {word!r}, vectors {', '.join(shapes)}"
    from tempfile import TemporaryDirectory

    from tests.support.tiny_pipelines import pipelines, prior_of, states
    from threedgen.guidance.options import LoraFile

    with TemporaryDirectory() as folder:
        prior = prior_of(pipelines(Path(folder))["sd15"])
    before = {name: tensor.clone() for name, tensor in states(prior.networks).items()}
    additions.add(prior, [LoraFile(file=str(path))], [])
    return f"{sum(bool((t != before[name]).any()) for name, t in states(prior.networks).items())} layers changed"
