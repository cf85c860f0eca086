"""Tasks that write toybox objects as files: "toybox-sheet" and "make-toybox-assets".

"toybox-sheet":
    RUN/sheet.png, sheet-2.png, ...      contact sheets, one row per noun, to inspect the training data
"make-toybox-assets", for tests of tasks that read user meshes:
    RUN/000/00017-a-blue-dog.glb, ...    objects; y up, front +z, vertex colours
    RUN/captions.csv                     path and caption of each GLB file
"""

import csv
import io
from functools import partial
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError, did_you_mean, nearest
from threedgen.geometry.images import grid, write_sheets
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic
from threedgen.run.folder import slug
from threedgen.run.text import say
from threedgen.toybox.options import ToyboxSheetConfig
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, caption, held_out
from threedgen.toybox.world.toybox import Toybox, build, render_azimuths
from threedgen.train.task import Task, run_task

from .room_scenes import glb

AZIMUTHS = (25, -40, 60, 150, 20, 230, -70, 0)


def sheet_specs(noun: str, count: int, split: str, seed: int) -> list[Spec]:
    """Return up to ``count`` specifications (noun, colours, part) of objects of ``noun`` for a contact sheet.

    - ``split`` "train": about every second specification names a part or accessory, if the noun can have one. The main
      colours take turns.
    - ``split`` "held-out": every specification has a pair (main colour, part or accessory) that is excluded from
      training. The pairs take turns. The list is empty for nouns without such pairs.

    The first colour or pair depends on ``seed``.
    """
    entry, names = NOUNS[noun], list(COLOURS)
    options = entry.parts + entry.wears
    if split == "held-out":
        pairs = [(c, p) for c in names for p in options if held_out(Spec(noun, c, "", p))]
        row = [pairs[(k + seed) % len(pairs)] for k in range(count)] if pairs else []
        return [Spec(noun, c, "", p, names[(7 * k + 3) % len(names)]) for k, (c, p) in enumerate(row)]
    found: list[Spec] = []
    for k in range(400):
        part = options[(k // 2) % len(options)] if options and k % 2 else ""
        cycle = k // (2 * len(options)) if options else 0  # shifts colours, so that a part gets another in each cycle
        colour = names[(5 * k + cycle + seed + len(noun)) % len(names)]
        spec = Spec(noun, colour, "", part, names[(7 * k + 3) % len(names)] if part else "")
        if not held_out(spec):
            found.append(spec)
        if len(found) == count:
            break
    return found


def run_sheet(config: ToyboxSheetConfig, resume: Path | None = None, quiet: bool = False) -> int:
    folder = Path(str(config.out))
    words = list(config.nouns) or list(NOUNS)
    for noun in words:
        if noun not in NOUNS:
            raise ConfigError(f"unknown noun: {noun!r}{did_you_mean(nearest(noun, list(NOUNS)))}", "nouns")
    rows = {noun: sheet_specs(noun, config.columns, config.split, config.seed) for noun in words}
    words = [noun for noun in words if rows[noun]]
    if not words:
        raise ConfigError(f"no held-out combinations: {', '.join(rows)}. Choose other nouns, such as dog", "nouns")
    pages = (words[k : k + 12] for k in range(0, len(words), 12))
    for path in write_sheets(folder, (_sheet(config, {noun: rows[noun] for noun in page}) for page in pages)):
        say(str(path))
    return 0


def _sheet(config: ToyboxSheetConfig, rows: dict[str, list[Spec]]) -> Array:
    images, labels = [], []
    for noun, specs in rows.items():
        for k, spec in enumerate(specs):
            rng = np.random.default_rng([config.seed, k, *noun.encode()])
            images.append(render_azimuths(build(spec, rng), [AZIMUTHS[k % 8]], config.size).rgb[0])
            labels.append(caption(spec))
        while len(images) % config.columns:
            images.append(np.full_like(images[-1], 0.5))
            labels.append("")
    return grid(np.stack(images), config.columns, labels)


def make(task: Task) -> None:
    config, rows = task.config, [("file", "caption")]
    box = Toybox(config.seed, config.split, style=config.style)
    with task.track_progress("assets", config.count) as on_step:
        for index in range(config.first, config.first + config.count):
            on_step()
            asset = box.asset(index)
            file = f"{index // 1000:03d}/{index:05d}-{slug(asset.caption)[:-9][:40].strip('-')}.glb"
            rows.append((file, asset.caption))
            if not (path := task.folder / file).is_file():
                path.parent.mkdir(exist_ok=True)
                vertices, faces, colours, _ = asset.mesh()
                write_atomic(path, glb(vertices[faces], colours))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(task.folder / "captions.csv", text.getvalue())
    task.summarise(assets=config.count)


run_assets = partial(run_task, make, result="captions.csv", files=("captions.csv",), rerun_finished=True)
