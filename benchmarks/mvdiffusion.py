"""A denoising step of MVDiffusion's panorama network with classifier-free guidance: time and peak memory, against the
reference implementation, which is run from a clone of it. The default widths are those of Stable Diffusion 2."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from threedgen.config.errors import ConfigError

from .mvdiffusion_sides import COMPARED, Measured, Trial, measure
from .table import Row, Table

REFERENCE, OURS, HALF = "reference", "ours", "ours, bfloat16"
SAME = {OURS: 0.01, HALF: 0.1}
"""So far from the reference's the outputs may be, in standard deviations, on average."""


def table(reference: Path | None, views: int, size: int, steps: int, widths: tuple[int, ...], device: str) -> Table:
    """A row for each side, and for ours as machines with instructions for bfloat16 draw, one process after the other.

    Raises ConfigError.
    """
    if reference is None:
        raise ConfigError("name a clone of github.com/Tangshitao/MVDiffusion", "--reference")
    trial = Trial(views, size, steps, widths, device)
    check(trial)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "blocks.safetensors"
        measured = {REFERENCE: alone(trial, file, reference), OURS: alone(trial, file, None)}
        measured[HALF] = alone(trial, file, None, torch.bfloat16)
    theirs = measured[REFERENCE]
    off = {name: float((measured[name].output - theirs.output).abs().mean() / theirs.output.std()) for name in SAME}
    for name, difference in off.items():
        if not difference < SAME[name]:
            raise ConfigError(f"the outputs differ by {difference:.3g} standard deviations, so these are not the same")
    notes = [
        f"2 x {views} views of {size} x {size} pixels, widths {', '.join(map(str, widths))}, {device}, {steps} steps, "
        f"{torch.get_num_threads()} threads; float32 but in the last row. The first step finds where views correspond, "
        "which ours keeps. GB of the whole process, which has its weights and libraries, or of a GPU.",
        f"The outputs differ by {off[OURS]:.1e} and {off[HALF]:.1e} standard deviations on average at {COMPARED} "
        "pixels, all with frequencies up to 64 in the positional encoding: of those of released weights, which are "
        "timed, float32 makes noise.",
    ]
    return Table(
        "A denoising step of MVDiffusion", [row(name, found, theirs) for name, found in measured.items()], notes
    )


def row(name: str, found: Measured, baseline: Measured) -> Row:
    """What a side took, and as shares of what the reference took."""
    gigabytes = {"peak GB": found.peak / 1e9, "of them weights": found.weights / 1e9}
    return {
        "case": name,
        "first step, s": found.seconds[0],
        "median, s": median(found.seconds),
        "ratio": median(found.seconds) / median(baseline.seconds),
        "CPU, s": median(found.cpu),
        "CPU ratio": median(found.cpu) / median(baseline.cpu),
        **gigabytes,
        "peak ratio": found.peak / baseline.peak,
        "beside the weights": (found.peak - found.weights) / (baseline.peak - baseline.weights),
    }


def alone(trial: Trial, file: Path, reference: Path | None, dtype: torch.dtype = torch.float32) -> Measured:
    """Measures a side in a new process, whose memory is only its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, trial, file, reference, dtype).result()


def check(trial: Trial) -> None:
    """Raises ConfigError for what the networks do not take."""
    step = 8 * 2 ** (len(trial.widths) - 1)
    if not trial.widths or any(width % 64 or width < 64 for width in trial.widths):
        raise ConfigError("should be multiples of 64, such as 64,128", "--widths")
    if trial.size % step or trial.size < 2 * step or COMPARED < 2 * step:
        raise ConfigError(f"{trial.size} should be a multiple of {step}, at least {2 * step}", "--size")
    if trial.views < 5:
        raise ConfigError(f"{trial.views} views of 90 degrees do not overlap; give at least 5", "--views")
    if trial.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA GPU here; give cpu", "--device")
