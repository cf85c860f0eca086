"""Report of the task "evaluate-views": metrics with intervals, differences, and the metrics of each scene."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from threedgen.evaluation.features import FeatureNetwork, NetworkOutput
from threedgen.evaluation.metrics.distributions import fid, inception_score, kid
from threedgen.evaluation.metrics.figures import (
    Estimate,
    Json,
    bootstrap_ratio,
    estimate,
    jackknife_estimate,
    mean_estimate,
    paired_differences,
)
from threedgen.evaluation.metrics.overlap import DEPTH_ERROR, overlap_ratio
from threedgen.evaluation.report import figure_table, rounded, write_report
from threedgen.train.task import Task

from .options import EvaluateViewsConfig
from .sampling import ATTENTION, BASE

TRUTH, OTHER, FOLDER = "truth", "other_truth", "views"
ROWS = {
    TRUTH: "the truth",
    ATTENTION: "with attention between views",
    BASE: "the same base without it",
    FOLDER: "views of the folder",
    OTHER: "other true scenes",
}
MEANS = {
    "psnr": "overlap PSNR, dB",
    "clip": "CLIP score",
    "given": "view 0 to the given image",
    "given_overlap": "where the next views overlap it",
    "beside": "view 0 to the next views",
    "beside_given": "the given image to the next views",
}
FIGURES = {"psnr": MEANS["psnr"], "ratio": "of the truth's", "fid": "FID", "kid": "KID", "is": "Inception score"}
FIGURES |= {"clip": MEANS["clip"]}
GIVEN = {name: words for name, words in MEANS.items() if name not in FIGURES}
SPLITS, KID_SUBSET = 10, 5000
"""Number of parts of the Inception score, and maximum number of images of the single subset of KID."""
Indices = NDArray[np.intp]


@dataclass
class MeasuredViews:
    """Measurements of the scenes of one table row.

    Attributes:
        figures: for each scene, its metrics by name; None where undefined.
        outputs: for each scene, the output of the feature network for its views.
    """

    figures: list[dict[str, float | None]] = field(default_factory=list)
    outputs: list[NetworkOutput] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.figures)

    @property
    def images(self) -> int:
        """Number of images of all scenes."""
        return sum(len(output.features) for output in self.outputs)

    def values(self, name: str) -> list[float | None]:
        """Return the metric ``name`` of each scene; None where undefined."""
        return [figures.get(name) for figures in self.figures]

    def stack(self, part: Literal["features", "logits"], scenes: Indices) -> np.ndarray:
        """Concatenate the features (N, D) or logits (N, K) of the N images of some scenes, given by their indices."""
        return np.concatenate([getattr(self.outputs[k], part) for k in scenes])


def set_figures(row: MeasuredViews, truth: MeasuredViews) -> dict[str, Callable[[Indices], float]]:
    """Return FID, KID and Inception score of a row as functions of the indices of the included scenes.

    A row with as many scenes as the truth has the same scenes. In that case only the included true scenes are compared
    with; otherwise all true scenes are.
    """
    everything = np.arange(len(truth))

    def features(scenes: Indices) -> tuple[np.ndarray, np.ndarray]:
        true_scenes = scenes if len(row) == len(truth) else everything
        return row.stack("features", scenes), truth.stack("features", true_scenes)

    def inception(scenes: Indices) -> float:
        logits = row.stack("logits", scenes)
        return inception_score(logits, min(SPLITS, len(logits)))[0]

    def kernel(scenes: Indices) -> float:
        ours, true = features(scenes)
        return kid(ours, true, 1, min(len(ours), len(true), KID_SUBSET))[0]

    if row is truth:
        return {"is": inception}
    return {"fid": lambda scenes: fid(*features(scenes)), "kid": kernel, "is": inception}


def write_views_report(
    task: Task, rows: Mapping[str, MeasuredViews], network: FeatureNetwork, about: Mapping[str, object]
) -> None:
    """Write report.json with the first entries ``about``, report.md and the summary, and print the tables."""
    truth = rows[TRUTH]
    rows = {row: rows[row] for row in ROWS if row in rows}
    found = {row: summary(mine, truth) for row, mine in rows.items()}
    less = difference(rows[ATTENTION], rows[BASE], truth) if ATTENTION in rows else {}
    lines = {ROWS[row]: mine for row, mine in found.items()} | ({"with minus without": less} if less else {})
    tables = [figure_table("views", lines, FIGURES)]
    if "given" in less:
        tables.append(figure_table("views", {name: line for name, line in lines.items() if "given" in line}, GIVEN))
    figures = {
        **about,
        "features": network.description,
        "pictures": {row: mine.images for row, mine in rows.items()},
        "rows": found,
        "difference": less,
        "scenes": {row: mine.figures for row, mine in rows.items()},
    }
    text = "\n\n".join(tables)
    whole = f"# Views of one scene\n\n{text}\n\n{explanation(task.config, rows, network)}\n"
    write_report(task, "report", rounded(figures), whole, text, summary={"scenes": len(truth)})


def summary(row: MeasuredViews, truth: MeasuredViews) -> Json:
    """Compute all metrics of a row with 95 % intervals over the scenes, as JSON."""
    found: Json = {"scenes": len(row)} | means(row.figures)
    ours, true = row.values("psnr"), truth.values("psnr")
    found["ratio"] = estimate(overlap_ratio(ours, true), bootstrap_ratio(ours, true))
    for name, figure in set_figures(row, truth).items():
        found[name] = jackknife_estimate(figure, len(row))
    return found


def difference(row: MeasuredViews, other: MeasuredViews, truth: MeasuredViews) -> Json:
    """Compute the metrics of a row minus those of another row of the same scenes, with 95 % intervals."""
    differences = paired_differences(row.figures, other.figures, row.figures[0])
    found: Json = {**means(differences)}
    found["psnr"]["won"] = sum((one["psnr"] or 0) > 0 for one in differences)
    ours, theirs = set_figures(row, truth), set_figures(other, truth)
    for name in ours:

        def figure(scenes: Indices, name: str = name) -> float:
            return ours[name](scenes) - theirs[name](scenes)

        found[name] = jackknife_estimate(figure, len(row))
    return found


def means(scenes: list[dict[str, float | None]]) -> dict[str, Estimate]:
    """Return the mean of each metric over the scenes. Metrics that are undefined in all scenes are left out."""
    found = {name: mean_estimate([one.get(name) for one in scenes]) for name in MEANS}
    return {name: figure for name, figure in found.items() if figure["mean"] is not None}


def explanation(config: EvaluateViewsConfig, rows: Mapping[str, MeasuredViews], network: FeatureNetwork) -> str:
    """Return the text of the report that explains its metrics."""
    source = (
        f"Same captions and noise, DDIM {config.steps} steps, guidance {config.guidance_scale:g}, seed {config.seed}."
    )
    if FOLDER in rows:
        source = "The views are those of a folder, the truth is that of other scenes."
    at = f" at {config.overlap_size} pixels per side" if config.overlap_size else ""
    caption = f"\nCLIP score: 100 cos of each view and its own caption, by {config.clip}." if config.clip else ""
    return f"""{len(rows[TRUTH])} held-out scenes. {source}

Overlap PSNR{at}: each view and the next one warped into it, for paths where the depths of both are within
{DEPTH_ERROR:g} m (MVDiffusion, arXiv 2307.01097, section 5). "Of the truth's" is the ratio of the means. In brackets
95 % intervals over the scenes: bootstrap of means, jackknife of 20 groups of FID, KID and Inception score.

FID and KID (one unbiased estimate, unscaled) of the views and {rows[TRUTH].images} true ones, and the Inception score
of {SPLITS} parts, by {network.description}. With few images FID is too high: compare rows of one table.{caption}"""
