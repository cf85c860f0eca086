"""Compare our MVDiffusion panorama network with the reference implementation: time and peak memory of a denoising step.

A step includes classifier-free guidance. The default channel widths are the widths of Stable Diffusion 2.
"""

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
TOLERANCE = {OURS: 0.01, HALF: 0.1}
"""Maximum mean absolute difference between our and the reference output, in standard deviations of the reference."""


def table(reference: Path | None, views: int, size: int, steps: int, widths: tuple[int, ...], device: str) -> Table:
    """Return a row for the reference, for our network in float32 and for ours in bfloat16, each in its own process.

    `reference` is a clone of the MVDiffusion repository, `size` the side of the views in pixels, and `widths` are the
    channels of the UNet levels. Raises ConfigError for invalid options, or if the outputs differ more than TOLERANCE.
    """
    if reference is None:
        raise ConfigError("is missing. Give a clone of github.com/Tangshitao/MVDiffusion", "--reference")
    trial = Trial(views, size, steps, widths, device)
    check(trial)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "blocks.safetensors"
        measured = {REFERENCE: run_in_process(trial, file, reference), OURS: run_in_process(trial, file, None)}
        measured[HALF] = run_in_process(trial, file, None, torch.bfloat16)
    theirs = measured[REFERENCE]
    off = {
        name: float((measured[name].output - theirs.output).abs().mean() / theirs.output.std()) for name in TOLERANCE
    }
    for name, difference in off.items():
        if not difference < TOLERANCE[name]:
            raise ConfigError(
                f"the outputs of {name!r} and the reference differ by {difference:.3g} standard deviations, more than "
                f"{TOLERANCE[name]:g}: the networks are not equivalent"
            )
    notes = [
        f"2 x {views} views of {size} x {size} pixels, widths {', '.join(map(str, widths))}, {device}, {steps} steps, "
        f"{torch.get_num_threads()} threads; float32 except in the last row. The first step computes the "
        "correspondences between views, which ours caches. GB of the whole process, including weights and "
        "libraries, or of the GPU.",
        f"The outputs differ by {off[OURS]:.1e} and {off[HALF]:.1e} standard deviations on average at {COMPARED} "
        "pixels. This comparison limits the positional encoding to frequencies up to 64, because float32 does not "
        "resolve the higher ones of the released weights, which are timed.",
    ]
    return Table(
        "A denoising step of MVDiffusion", [row(name, found, theirs) for name, found in measured.items()], notes
    )


def row(name: str, found: Measured, baseline: Measured) -> Row:
    """Return the table row of a variant, with ratios to the measurement `baseline` of the reference."""
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


def run_in_process(trial: Trial, file: Path, reference: Path | None, dtype: torch.dtype = torch.float32) -> Measured:
    """Measure a variant in a new process, so that its peak memory does not include other variants."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, trial, file, reference, dtype).result()


def check(trial: Trial) -> None:
    """Raise ConfigError for options that the networks or this machine do not support."""
    step = 8 * 2 ** (len(trial.widths) - 1)
    if not trial.widths or any(width % 64 or width < 64 for width in trial.widths):
        raise ConfigError("should be multiples of 64, such as 64,128", "--widths", trial.widths)
    if trial.size % step or trial.size < 2 * step or COMPARED < 2 * step:
        raise ConfigError(f"should be a multiple of {step}, at least {2 * step}", "--size", trial.size)
    if trial.views < 5:
        raise ConfigError("should be at least 5, so that views of 90 degrees overlap", "--views", trial.views)
    if trial.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("needs a CUDA GPU, and this machine has none. Use cpu", "--device", trial.device)
