"""Task "toybox-subjects", which writes photos of subjects: toybox objects with unusual features to evaluate DreamBooth.

A subject has unusual proportions, an oversized or undersized part, a pattern in a second colour and a mark on one
side. Captions do not describe these features, and no prior (generative model) was trained on them. DreamBooth tunes a
prior on the photos of a subject. The evaluation compares its samples with renders from other cameras.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.run.disk import write_atomic
from threedgen.run.text import say
from threedgen.toybox.options import ToyboxSubjectsConfig
from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Noun, article, colour_value
from threedgen.toybox.world.primitives import BOX, FRUSTUM, SPHERE, Asset, Primitive
from threedgen.toybox.world.toybox import render_orbit

PHOTOS = 5  # photos per subject, spread over all azimuths
PATTERNS = ("patches", "bands", "spots")
STRETCHES = (0.7, 0.78, 1.28, 1.45)
"""Possible stretch factors; each axis of a subject gets a different one. Usual objects have factors of 0.9 to 1.11."""
ODD_PART_SCALES = (0.6, 1.5, 1.8)  # possible scale factors of the oversized or undersized part
MIN_COLOUR_DISTANCE = 0.5  # minimum Euclidean distance between the sRGB colours of a subject
MIN_GREY_DISTANCE = 0.3
"""Minimum Euclidean distance of the sRGB colours of a subject from grey 0.5, so that photos can be segmented."""


def subject_nouns() -> list[Noun]:
    return [noun for noun in NOUNS.values() if noun.front]


def make_subject(seed: int, number: int, noun: str = "", wearing: Sequence[str] = ()) -> Asset:
    """Build a subject: a toybox object with unusual features that its caption does not describe, for DreamBooth tests.

    Args:
        seed, number: together they seed the features. ``number`` is also the ``index`` of the result.
        noun: object class, such as "dog"; "": ``seed`` and ``number`` choose the class, and consecutive numbers give
            different classes.
        wearing: accessories that a chosen class must be able to wear, because later prompts add them. The object itself
            gets none. Not used if ``noun`` is given.

    Returns:
        Object whose caption is only the noun with its article, such as "a dog".

    Raises:
        KeyError: ``noun`` is not a toybox noun.
    """
    rng = np.random.default_rng([seed, number, *b"subject", *noun.encode()])
    candidates = [entry for entry in subject_nouns() if set(wearing) <= set(entry.wears)]
    order = np.random.default_rng([seed, *b"kinds"]).permutation(len(candidates))
    entry = NOUNS[noun] if noun else candidates[int(order[number % len(candidates)])]
    first, second, third = sample_palette(rng)
    builder = Builder(rng, first)
    entry.recipe(builder)
    solids = _odd_part(builder.solids, rng)
    solids += _pattern(solids, str(rng.choice(PATTERNS)), second, rng)
    builder.solids = [*solids, _mark(solids, third, rng)]
    primitives = builder.finish(rng.uniform(0.88, 1.0), rng.permutation(STRETCHES)[:3])
    text = f"{article(entry.word)} {entry.word}"
    return Asset(primitives, text, entry.word, entry.family, front=entry.front, index=number)


def render_photos(subject: Asset, count: int, size: int, seed: int = 0) -> np.ndarray:
    """Render "photos" of an object on a grey background (0.5). Return images (count, size, size, 3) in [0, 1].

    The azimuths of the cameras start at a random one and are nearly evenly spaced around the object. The elevations are
    random, from 5 to 30 degrees.
    """
    rng = np.random.default_rng([seed, max(0, subject.index), *b"photos"])
    turns = rng.uniform() + (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count
    elevation = np.deg2rad(rng.uniform(5.0, 30.0, count))
    return render_orbit(subject, 2 * np.pi * turns, elevation, size).rgb


def sample_palette(rng: np.random.Generator) -> list[np.ndarray]:
    """Sample three sRGB colours, each (3,) in [0, 1], that differ clearly from each other and from grey 0.5."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for name in rng.permutation(list(COLOURS)):
        value = np.asarray(COLOURS[str(name)])
        visible = np.linalg.norm(value - 0.5) > MIN_GREY_DISTANCE
        if visible and all(np.linalg.norm(value - other) > MIN_COLOUR_DISTANCE for other, _ in found):
            found.append((value, colour_value(str(name), rng)))
    return [value for _, value in found[:3]]


def _odd_part(solids: list[Primitive], rng: np.random.Generator) -> list[Primitive]:
    parts = sorted({s.label for s in solids} - {"body", "eyes"})
    if not parts:
        return solids
    odd, factor = str(rng.choice(parts)), float(rng.choice(ODD_PART_SCALES))
    return [replace(s, matrix=factor * s.matrix) if s.label == odd else s for s in solids]


def _largest(solids: Sequence[Primitive], count: int) -> list[Primitive]:
    # spheres, boxes and frustums can carry a pattern best
    carriers = [s for s in solids if s.kind in (SPHERE, BOX, FRUSTUM)] or list(solids)
    return sorted(carriers, key=lambda s: -abs(float(np.linalg.det(s.matrix))))[:count]


def _pattern(solids: list[Primitive], pattern: str, colour: np.ndarray, rng: np.random.Generator) -> list[Primitive]:
    # returns the new solids; "patches" also recolours half of the parts in the list solids
    if pattern == "patches":
        parts = sorted({s.label for s in solids} - {"eyes"})
        recoloured = set(rng.permutation(parts)[: (len(parts) + 1) // 2].tolist())
        largest = _largest(solids, 1)[0]
        for k, solid in enumerate(solids):
            if solid.label in recoloured and solid is not largest:
                solids[k] = replace(solid, colour=colour)
        return [_spot(largest, colour, rng, 0.6) for _ in range(2)]
    if pattern == "bands":
        places = (-0.5, 0.0, 0.5) if rng.random() < 0.5 else (-0.35, 0.35)
        return [_band(solid, place, colour) for solid in _largest(solids, 2) for place in places]
    return [_spot(solid, colour, rng, rng.uniform(0.2, 0.32)) for solid in _largest(solids, 2) for _ in range(9)]


def _band(solid: Primitive, place: float, colour: np.ndarray) -> Primitive:
    # place, in (-1, 1), is the position of the band along the longest axis (z of a frustum)
    longest = 2 if solid.kind == FRUSTUM else int(np.linalg.norm(solid.matrix, axis=0).argmax())
    order = [(longest + 1) % 3, (longest + 2) % 3, longest]  # the z axis of the band is the longest axis
    radius = {SPHERE: np.sqrt(1 - place**2), BOX: 1.0}.get(solid.kind, 1 + (solid.param - 1) * (place + 1) / 2)
    local = np.eye(3)[:, order] @ np.diag([radius + 0.03, radius + 0.03, 0.1])
    kind = BOX if solid.kind == BOX else FRUSTUM
    centre = solid.centre + solid.matrix @ (place * np.eye(3)[longest])
    return Primitive(kind, 1.0, solid.matrix @ local, centre, colour, "pattern")


def _surface(solid: Primitive, direction: np.ndarray) -> np.ndarray:
    # point (3,) of the surface in world space, in a direction (3,), in local axes, from the centre of the solid
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
    # size is the radius relative to the solid's shortest half axis
    radius = size * float(np.linalg.norm(solid.matrix, axis=0).min())
    return Primitive(SPHERE, 1.0, radius * np.eye(3), _surface(solid, rng.normal(size=3)), colour, "pattern")


def _mark(solids: Sequence[Primitive], colour: np.ndarray, rng: np.random.Generator) -> Primitive:
    # on the left or right side, so that the two sides of a subject differ
    solid = _largest(solids, 1)[0]
    side = np.linalg.inv(solid.matrix) @ np.array([0.0, float(rng.choice([-1, 1])), 0.0])
    radius = 0.45 * float(np.linalg.norm(solid.matrix, axis=0).min())
    return Primitive(SPHERE, 1.0, radius * np.eye(3), _surface(solid, side), colour, "mark")


def run(config: ToyboxSubjectsConfig, resume: Path | None = None, quiet: bool = False) -> int:
    folder, rows, labels = Path(str(config.out)), [], []
    for number in range(config.subjects):
        subject = make_subject(config.seed, number)
        images = render_photos(subject, PHOTOS, config.size, config.seed)
        subfolder = folder / f"{number:03d}-{subject.noun.replace(' ', '-')}"
        for k, image in enumerate(images):
            write_png(subfolder / f"{k}.png", image)
        rows.append(images)
        labels += [f"{number}: {subject.caption}"] * len(images)
    path = write_png(folder / "subjects.png", grid(enlarge_small(np.concatenate(rows)), PHOTOS, labels))
    write_atomic(
        folder / "README.txt", "Photos of toybox subjects, one folder per subject. Use: mvdreambooth photos=FOLDER\n"
    )
    say(str(path))
    return 0
