"""Subjects: single things of the toybox's kinds that look like no other, as a person's own dog does.

Each is stretched as its noun never is, has a part that is too large or too small, a pattern of two colours and
a mark on one of its sides; captions have no words for any of it, and no prior was trained on it. They are what
personalisation is measured on: photos from several sides, and the truth from any other.

    subject = draw(seed=0, number=3)
    photos = photograph(subject, count=5, size=256, seed=0)      (5, 256, 256, 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.geometry.images import grid, readable, write_png
from threedgen.run.disk import write_atomic
from threedgen.run.text import say

from .builder import Builder
from .grammar import COLOURS, NOUNS, Noun, article, colour_value
from .primitives import BOX, FRUSTUM, SPHERE, Asset, Primitive
from .world import portraits

PATTERNS = ("patches", "bands", "spots")
STRETCHES = (0.7, 0.78, 1.28, 1.45)
"""A different one along each axis; what a noun's own luck does stays within a factor of 1.11."""
OVERSIZE = (0.6, 1.5, 1.8)
"""Of the odd part."""
FAR = 0.5
"""Colours of a pattern are that far apart in sRGB."""
FROM_GREY = 0.3
"""And that far from the grey behind them, so that a subject can be cut out of its photos."""


def kinds() -> list[Noun]:
    """What subjects can be: everything with a front, for the sides of others cannot be told."""
    return [noun for noun in NOUNS.values() if noun.front]


def draw(seed: int, number: int, noun: str = "", wearing: Sequence[str] = ()) -> Asset:
    """Subject ``number``, always the same for the same seed. Its caption is the plain noun: "a dog".

    Consecutive ones are of different kinds, unless ``noun`` says of which; all of them could be ``wearing`` these
    accessories. Raises KeyError for an unknown noun.
    """
    rng = np.random.default_rng([seed, number, *b"subject", *noun.encode()])
    every = [kind for kind in kinds() if set(wearing) <= set(kind.wears)]
    order = np.random.default_rng([seed, *b"kinds"]).permutation(len(every))
    entry = NOUNS[noun] if noun else every[int(order[number % len(every)])]
    first, second, third = palette(rng)
    builder = Builder(rng, first)
    entry.recipe(builder)
    solids = _odd_part(builder.solids, rng)
    solids += _pattern(solids, str(rng.choice(PATTERNS)), second, rng)
    builder.solids = [*solids, _mark(solids, third, rng)]
    placed = builder.finish(rng.uniform(0.88, 1.0), rng.permutation(STRETCHES)[:3])
    text = f"{article(entry.word)} {entry.word}"
    return Asset(placed, text, entry.word, entry.family, front=entry.front, index=number)


def photograph(subject: Asset, count: int, size: int, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) in [0, 1] on grey, from all around, roughly evenly, 5 to 30 degrees above."""
    rng = np.random.default_rng([seed, max(0, subject.index), *b"photos"])
    turns = rng.uniform() + (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count
    high = np.deg2rad(rng.uniform(5.0, 30.0, count))
    return views(subject, 2 * np.pi * turns, high, size)


def views(subject: Asset, azimuth: np.ndarray, elevation: np.ndarray, size: int) -> np.ndarray:
    """(V, size, size, 3) in [0, 1] on grey 0.5 from ``azimuth`` and ``elevation`` (V,), radians."""
    return portraits(subject, azimuth, elevation, size).rgb


def palette(rng: np.random.Generator) -> list[np.ndarray]:
    """Three colours (3,), each FAR from the others and FROM_GREY."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for name in rng.permutation(list(COLOURS)):
        value = np.asarray(COLOURS[str(name)])
        clear = np.linalg.norm(value - 0.5) > FROM_GREY
        if clear and all(np.linalg.norm(value - other) > FAR for other, _ in found):
            found.append((value, colour_value(str(name), rng)))
    return [value for _, value in found[:3]]


def _odd_part(solids: list[Primitive], rng: np.random.Generator) -> list[Primitive]:
    """One of the parts in another size, each solid about its own centre."""
    parts = sorted({s.label for s in solids} - {"body", "eyes"})
    if not parts:
        return solids
    odd, factor = str(rng.choice(parts)), float(rng.choice(OVERSIZE))
    return [replace(s, matrix=factor * s.matrix) if s.label == odd else s for s in solids]


def _largest(solids: Sequence[Primitive], count: int) -> list[Primitive]:
    """The solids that carry patterns, by volume."""
    plain = [s for s in solids if s.kind in (SPHERE, BOX, FRUSTUM)] or list(solids)
    return sorted(plain, key=lambda s: -abs(float(np.linalg.det(s.matrix))))[:count]


def _pattern(solids: list[Primitive], pattern: str, colour: np.ndarray, rng: np.random.Generator) -> list[Primitive]:
    """What is laid on the largest solids in a second colour; "patches" repaints every other part in place instead."""
    if pattern == "patches":
        parts = sorted({s.label for s in solids} - {"eyes"})
        chosen = set(rng.permutation(parts)[: (len(parts) + 1) // 2].tolist())
        largest = _largest(solids, 1)[0]
        for k, solid in enumerate(solids):
            if solid.label in chosen and solid is not largest:
                solids[k] = replace(solid, colour=colour)
        return [_spot(largest, colour, rng, 0.6) for _ in range(2)]
    if pattern == "bands":
        places = (-0.5, 0.0, 0.5) if rng.random() < 0.5 else (-0.35, 0.35)
        return [_band(solid, place, colour) for solid in _largest(solids, 2) for place in places]
    return [_spot(solid, colour, rng, rng.uniform(0.2, 0.32)) for solid in _largest(solids, 2) for _ in range(9)]


def _band(solid: Primitive, place: float, colour: np.ndarray) -> Primitive:
    """A stripe around a solid, at ``place`` in (-1, 1) of its longest axis (a frustum's own)."""
    longest = 2 if solid.kind == FRUSTUM else int(np.linalg.norm(solid.matrix, axis=0).argmax())
    order = [(longest + 1) % 3, (longest + 2) % 3, longest]  # the stripe's z is that axis
    radius = {SPHERE: np.sqrt(1 - place**2), BOX: 1.0}.get(solid.kind, 1 + (solid.param - 1) * (place + 1) / 2)
    local = np.eye(3)[:, order] @ np.diag([radius + 0.03, radius + 0.03, 0.1])
    kind = BOX if solid.kind == BOX else FRUSTUM
    centre = solid.centre + solid.matrix @ (place * np.eye(3)[longest])
    return Primitive(kind, 1.0, solid.matrix @ local, centre, colour, "pattern")


def _surface(solid: Primitive, direction: np.ndarray) -> np.ndarray:
    """The point (3,) of a solid's surface in a local direction (3,)."""
    if solid.kind == BOX:
        local = direction / np.abs(direction).max()
    elif solid.kind == FRUSTUM:
        u = float(np.clip(direction[2] / np.linalg.norm(direction), -0.9, 0.9))
        flat = direction[:2] / max(float(np.linalg.norm(direction[:2])), 1e-9)
        local = np.array([*(flat * (1 + (solid.param - 1) * (u + 1) / 2)), u])
    else:
        local = direction / np.linalg.norm(direction)
    return solid.centre + solid.matrix @ local


def _spot(solid: Primitive, colour: np.ndarray, rng: np.random.Generator, size: float) -> Primitive:
    """A round spot, ``size`` times as wide as the solid is thin, that stands out a little."""
    radius = size * float(np.linalg.norm(solid.matrix, axis=0).min())
    return Primitive(SPHERE, 1.0, radius * np.eye(3), _surface(solid, rng.normal(size=3)), colour, "pattern")


def _mark(solids: Sequence[Primitive], colour: np.ndarray, rng: np.random.Generator) -> Primitive:
    """A spot in a third colour on the left or the right of the largest solid: the sides of a subject differ."""
    solid = _largest(solids, 1)[0]
    side = np.linalg.inv(solid.matrix) @ np.array([0.0, float(rng.choice([-1, 1])), 0.0])
    radius = 0.45 * float(np.linalg.norm(solid.matrix, axis=0).min())
    return Primitive(SPHERE, 1.0, radius * np.eye(3), _surface(solid, side), colour, "mark")


def run(config: Any, resume: Path | None = None, quiet: bool = False) -> int:
    """The task "toybox-subjects": a folder of photos for each subject, and a sheet of all of them."""
    folder, rows, labels = Path(str(config.out)), [], []
    for number in range(config.first, config.first + config.subjects):
        subject = draw(config.seed, number)
        pictures = photograph(subject, config.photos, config.size, config.seed)
        inside = folder / f"{number:03d}-{subject.noun.replace(' ', '-')}"
        for k, picture in enumerate(pictures):
            write_png(inside / f"{k}.png", picture)
        rows.append(pictures)
        labels += [f"{number}: {subject.caption}"] * len(pictures)
    path = write_png(folder / "subjects.png", grid(readable(np.concatenate(rows)), config.photos, labels))
    write_atomic(folder / "README.txt", "photos of toybox subjects, a folder each: photos=FOLDER for mvdreambooth\n")
    say(str(path))
    return 0
