"""Is the consistency score sound? Ground truth of the toybox, spoilt more and more: the score should fall.

    python -m benchmarks.soundness --scenes 8 --out outputs/soundness

Three ways: cameras that are said to be turned about the origin, each view in its own direction; a random gain and shift
of the colours of each view; views of another object among them. Writes soundness.json, soundness.md and a plot of each
way as SVG. A killed run goes on with the fields it has not fitted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from threedgen.data.srn.make import Job as Picture
from threedgen.data.srn.make import scene
from threedgen.data.srn.options import MakeSRNToyboxConfig
from threedgen.evaluation.consistency.fits import Job, score, stored
from threedgen.evaluation.consistency.held_out import held_out_places
from threedgen.evaluation.consistency.options import TSEDConfig
from threedgen.evaluation.consistency.scenes import Scene
from threedgen.evaluation.metrics.figures import bootstrap, mean
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.views import Views
from threedgen.representations.options import SubsampledProtocolConfig
from threedgen.run.seeding import generator, numpy_generator
from threedgen.viewer.plots import plot

from .table import Row, Table

FIGURES = ("psnr", "ssim", "tsed")
STYLE = (
    "><style>text{font:11px sans-serif;fill:#555}.rule{stroke:#ddd}"
    ".line{stroke:#1f6feb;stroke-width:2;fill:none}.end{fill:#1f6feb}</style>"
)
"""What pages bring for a plot, and a file of its own must have."""


def turned(views: Views, degrees: float, other: Views, rng: torch.Generator) -> Views:
    """Cameras that are said to stand ``degrees`` away, as seen from the origin, each in its own direction."""
    axis = torch.nn.functional.normalize(torch.randn(len(views), 3, generator=rng), dim=-1) * np.deg2rad(degrees)
    cross = torch.zeros(len(views), 4, 4)
    cross[:, [2, 0, 1], [1, 2, 0]], cross[:, [1, 2, 0], [2, 0, 1]] = axis, -axis
    at = views.at
    return Views(views.images, Cameras(torch.linalg.matrix_exp(cross) @ at.c2w, Projection(at.K), at.height, at.width))


def jittered(views: Views, strength: float, other: Views, rng: torch.Generator) -> Views:
    """Each view with its own gain 1 + N(0, strength) and shift N(0, strength / 2) of each colour."""
    gain, shift = torch.randn(2, len(views), 1, 1, 3, generator=rng)
    return Views((views.images * (1 + strength * gain) + strength / 2 * shift).clamp(0, 1), views.at)


def swapped(views: Views, share: float, other: Views, rng: torch.Generator) -> Views:
    """A share of the views shows another object."""
    which = torch.rand(len(views), generator=rng) < share
    return Views(torch.where(which[:, None, None, None], other.images, views.images), views.at)


Spoil = Callable[[Views, float, Views, torch.Generator], Views]
WAYS: dict[str, tuple[Spoil, tuple[float, ...]]] = {
    "cameras turned, degrees": (turned, (0, 1, 2, 5)),
    "colour jitter": (jittered, (0, 0.03, 0.1, 0.3)),
    "views of another object": (swapped, (0, 0.1, 0.3, 0.5)),
}


def measure(given: argparse.Namespace) -> Table:
    """A row for each way and strength: mean of each figure over the scenes, with the interval of PSNR."""
    protocol = SubsampledProtocolConfig(**({"steps": given.steps} if given.steps else {}))
    options = TSEDConfig(pairs=given.pairs)
    data = MakeSRNToyboxConfig(task="make-srn-toybox", size=given.size, test_views=given.views)
    truth = [scene(data, Picture(("cars", "chairs")[k % 2], "test", k)) for k in range(given.scenes + 2)]
    rows: list[Row] = []
    for way, (spoil, strengths) in WAYS.items():
        for strength in strengths:
            found = []
            for k in range(given.scenes):
                rng = generator(0, k, f"soundness {way}")
                views = spoil(truth[k], strength, truth[k + 2], rng)
                held = held_out_places(Scene(str(k), views.at, tuple(range(len(views)))), 0.1, 0)
                spoilt = f"{way.replace(' ', '-').replace(',', '')}-{strength:g}" if strength else "not"
                job = Job.of(f"{k:03d}", spoilt, views, held, protocol, options, 0, given.out / "scores", "auto")
                found.append(stored(job) or score(job))
            means: dict[str, float] = {key: mean([one[key] for one in found]) or 0.0 for key in FIGURES}
            low, high = bootstrap([one["psnr"] for one in found], numpy_generator(0, 0, "soundness")) or (0.0, 0.0)
            rows.append({"spoilt": way, "strength": f"{strength:g}", **means, "psnr low": low, "psnr high": high})
            print(rows[-1], flush=True)
    note = f"{given.scenes} scenes, {given.views} views of {given.size} pixels, {protocol.name}, {protocol.steps} steps"
    return Table("Soundness of the consistency score", rows, [note])


def main(words: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soundness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=8, help="objects, cars and chairs in turn (default 8)")
    parser.add_argument("--views", type=int, default=120, help="views of each (default 120)")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    parser.add_argument("--steps", type=int, help="of each fit (default: those of the protocol)")
    parser.add_argument("--pairs", type=int, default=8, help="neighbours for TSED (default 8)")
    parser.add_argument("--out", type=Path, default=Path("outputs/soundness"), help="folder of the results")
    given = parser.parse_args(words)
    table = measure(given)
    print(table.text())
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "soundness.md").write_text(table.markdown(), encoding="utf-8")
    (given.out / "soundness.json").write_text(json.dumps(table.json(), indent=1) + "\n", encoding="utf-8")
    for k, (way, (_, strengths)) in enumerate(WAYS.items()):
        values = [float(row["psnr"]) for row in table.rows if row["spoilt"] == way]
        svg = plot(f"PSNR, {way}", list(zip(strengths, values, strict=True)), (strengths[0], strengths[-1]))
        alone = str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", STYLE, 1)
        (given.out / f"soundness-{k}.svg").write_text(alone, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
