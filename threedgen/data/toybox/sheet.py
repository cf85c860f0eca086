"""The task "toybox-sheet": a contact sheet, a row for each noun, to look at the world that the prior learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError, did_you_mean, nearest
from threedgen.geometry.images import grid, write_png
from threedgen.run.text import say

from .grammar import COLOURS, NOUNS, Spec, caption, held_out
from .world import build, photograph

AZIMUTHS = (25, -40, 60, 150, 20, 230, -70, 0)


def samples(noun: str, count: int, split: str, seed: int) -> list[Spec]:
    """``count`` things to say of a noun: in "train" every second has a part or an accessory, in turn; "held-out" goes
    through the noun's held-out combinations, and is empty if it has none."""
    entry, names = NOUNS[noun], list(COLOURS)
    options = entry.parts + entry.wears
    if split == "held-out":
        pairs = [(c, p) for c in names for p in options if held_out(Spec(noun, c, "", p))]
        chosen = [pairs[(k + seed) % len(pairs)] for k in range(count)] if pairs else []
        return [Spec(noun, c, "", p, names[(7 * k + 3) % len(names)]) for k, (c, p) in enumerate(chosen)]
    found: list[Spec] = []
    for k in range(400):
        part = options[(k // 2) % len(options)] if options and k % 2 else ""
        turn = k // (2 * len(options)) if options else 0  # or a part would meet the same colour in every turn
        colour = names[(5 * k + turn + seed + len(noun)) % len(names)]
        spec = Spec(noun, colour, "", part, names[(7 * k + 3) % len(names)] if part else "")
        if not held_out(spec):
            found.append(spec)
        if len(found) == count:
            break
    return found


def run(config, resume: Path | None = None, quiet: bool = False) -> int:
    """Draw sheet.png, at most 12 nouns a page (sheet-2.png, ...), into the run folder."""
    folder = Path(str(config.out))
    chosen = list(config.nouns) or list(NOUNS)
    for noun in chosen:
        if noun not in NOUNS:
            raise ConfigError(f"the toybox has no {noun!r}{did_you_mean(nearest(noun, list(NOUNS)))}", "nouns")
    rows = {noun: samples(noun, config.columns, config.split, config.seed) for noun in chosen}
    chosen = [noun for noun in chosen if rows[noun]]
    if not chosen:
        raise ConfigError(f"no combination of {', '.join(rows)} is held out; others are, such as dog", "nouns")
    pages = [chosen[k : k + 12] for k in range(0, len(chosen), 12)]
    for number, page in enumerate(pages, 1):
        pictures, labels = [], []
        for noun in page:
            for k, spec in enumerate(rows[noun]):
                rng = np.random.default_rng([config.seed, k, *noun.encode()])
                pictures.append(photograph(build(spec, rng), [AZIMUTHS[k % 8]], config.size).rgb[0])
                labels.append(caption(spec))
            while len(pictures) % config.columns:
                pictures.append(np.full_like(pictures[-1], 0.5))
                labels.append("")
        path = folder / ("sheet.png" if number == 1 else f"sheet-{number}.png")
        write_png(path, grid(np.stack(pictures), config.columns, labels))
        say(str(path))
    return 0
