"""The task "janus-score": the same table and page for GLB and OBJ files that somebody made.

ASSETS/METHOD/a-blue-dog.glb, or ASSETS/a-blue-dog.glb: a folder in the folder is a method, and the name of a file is
its prompt, unless `prompts` says another. Files are moved to the middle and scaled, and may face any way.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from threedgen.evaluation.toybox.held_out import without_front
from threedgen.run.folder import slug
from threedgen.run.progress import Count
from threedgen.train.loop import set_threads

from .benchmark import error_rates
from .options import JanusScoreConfig, asset_files, folder_of_assets
from .report import Report
from .results import Reader, Result, rows


def run(config: JanusScoreConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Look, report; returns the exit code. Raises ConfigError."""
    begun, folder = time.monotonic(), Path(str(config.out))
    set_threads(config.threads)
    assets = folder_of_assets(config.assets, "assets")
    found = []
    for path in asset_files(assets):
        first, *inside = path.relative_to(assets).parts
        found.append((path, first if inside else assets.resolve().name, prompt_of(path, config)))
    left_out = without_front([prompt for _, _, prompt in found])
    kept = [asset for asset in found if asset[2] not in left_out]
    prompts = list(dict.fromkeys(prompt for _, _, prompt in kept))
    rates = error_rates(config, folder, quiet)
    reader = Reader(config.meter, prompts, folder / "looks", rates, free=config.orientation == "free")
    results = []
    with Count("looking", len(kept), quiet) as count:
        for path, method, prompt in kept:
            name = slug(path.relative_to(assets).as_posix())
            looked = reader.read(path, name, prompt, config.up, fit=True)
            results.append(Result(method, prompt, None, name, **looked))
            count.add(1, prompt)
    table = rows(list(dict.fromkeys(method for _, method, _ in kept)), results, prompts, rates, {})
    return Report(config, table, results, rates, left_out).finish(begun, quiet)


def prompt_of(path: Path, config: JanusScoreConfig) -> str:
    """What a file shows: "a-blue_dog.glb" -> "a blue dog"."""
    return config.prompts.get(path.stem) or " ".join(re.split(r"[\s_-]+", path.stem)).strip() or path.stem
