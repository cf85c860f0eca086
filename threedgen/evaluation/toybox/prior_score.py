"""The task "evaluate-prior": held-out captions are sampled from a prior, and the probe says what was drawn.

    RUN/samples/00003.safetensors   one batch of objects, kept: a killed run goes on after the last whole one
    RUN/report.json, report.md      figures with intervals, beside the probe's own on ground truth
    RUN/sheet.png                   some of the samples with captions and verdicts
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from threedgen.config import registry
from threedgen.geometry.cameras import orbit_c2w
from threedgen.geometry.images import to_uint8
from threedgen.guidance import diffusion
from threedgen.run.folder import write_atomic
from threedgen.run.interrupts import Interrupts
from threedgen.run.metrics import write_summary
from threedgen.run.progress import Count
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.loop import set_threads

from .held_out import Case, held_out_cases
from .judging import Verdict, judge_pictures
from .labels import ring
from .options import EvaluatePriorConfig
from .probe import Probe, locate, read_card
from .report import figures_plain, table, worst, worst_text, write_report, write_sheet

logger = logging.getLogger(__name__)

KEYS = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side", "side", "noun_single", "colour_single")
RELATIVE_DISTANCE, FOV = 0.95, np.deg2rad(40.0)


def run(config: EvaluatePriorConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Sample, look, report; returns the exit code. Raises ConfigError before any sampling if the probe is missing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    probe = Probe.load(config.probe.weights)
    set_threads(config.threads)
    cases = held_out_cases(config.samples, config.seed, config.first)
    prior = registry.build("prior", config.prior)
    with Interrupts() as interrupts:
        drawn = draw_all(config, prior, cases, folder / "samples", quiet, interrupts)
    if drawn is None:
        return 130
    measured, truth = [], []
    with Count("looking", len(cases), quiet) as count:
        for case, pictures in zip(cases, drawn, strict=True):
            azimuth, elevation = stand(config, case)
            measured.append(judge_pictures(probe, pictures, case.spec, azimuth))
            real = ring(case.truth(config.seed), azimuth, elevation, RELATIVE_DISTANCE, FOV, pictures.shape[1])
            truth.append(judge_pictures(probe, real, case.spec, azimuth))
            count.add(1)
    write(config, folder, cases, drawn, measured, truth)
    write_summary(folder, config, time.monotonic() - begun, status="finished", prior=fingerprint(prior))
    print(folder / "report.md")
    return 0


# --- sampling ----------------------------------------------------------------------------------------------------


def stand(config: EvaluatePriorConfig, case: Case) -> tuple[np.ndarray, float]:
    """Where the cameras of a case stand: azimuth (V,) from a random first one, and one elevation; radians."""
    rng = numpy_generator(config.seed, case.index, "evaluation cameras")
    azimuth = rng.uniform(0, 2 * np.pi) + 2 * np.pi / config.n_view * np.arange(config.n_view)
    return azimuth % (2 * np.pi), float(np.deg2rad(rng.uniform(*config.elevation_range)))


def poses(config: EvaluatePriorConfig, case: Case) -> Tensor:
    """(V, 4, 4) camera-to-world."""
    azimuth, elevation = stand(config, case)
    ring_of = torch.from_numpy(azimuth).float()
    distance = RELATIVE_DISTANCE / np.tan(FOV / 2)
    return orbit_c2w(torch.full_like(ring_of, elevation), ring_of, torch.full_like(ring_of, distance))


@torch.no_grad()
def sample_batch(
    prior: Any,
    prompts: Sequence[str],
    c2w: Tensor,
    steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
    negative_prompt: str = "",
) -> Tensor:
    """DDIM samples of n objects in one go: ``c2w`` (n, V, 4, 4), a generator each -> (n, V, H, W, 3) in [0, 1].

    The noise of an object comes from its own generator, so the batch it is in changes only rounding.
    """
    count, n_view = c2w.shape[:2]
    text = prior.encode_prompt(list(prompts)), prior.encode_prompt([negative_prompt])
    camera = prior.camera(c2w.flatten(0, 1).to(prior.device).float())
    side = prior.image_size // prior.factor
    shape = (n_view, prior.unet.config["out_channels"], side, side)
    x_T = torch.cat([torch.randn(shape, generator=rng) for rng in generators]).to(prior.device)
    denoise = diffusion.guided(prior.denoise, guidance_scale)
    z = diffusion.ddim_sample(denoise, x_T, text, camera, n_view, prior.schedule, steps)
    return torch.stack([prior.decode_latents(part).float().cpu() for part in z.split(n_view)])


def draw_all(
    config: EvaluatePriorConfig, prior: Any, cases: list[Case], folder: Path, quiet: bool, interrupts: Interrupts
) -> list[np.ndarray] | None:
    """Views (V, H, W, 3) uint8 of every case, from the files that are there already or newly sampled; None after
    Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[np.ndarray] = []
    mark = {"prior": fingerprint(prior)}
    with Count("sampling", len(cases), quiet) as count:
        for start in range(0, len(cases), config.batch):
            batch = cases[start : start + config.batch]
            path = folder / f"{start // config.batch:05d}.safetensors"
            told = mark | {"captions": "\n".join(case.caption for case in batch)}
            pictures = read_batch(path, told)
            if pictures is None:
                if interrupts.stop:
                    return None
                rngs = [generator(config.seed, case.index, "evaluation sample") for case in batch]
                views = sample_batch(
                    prior, [case.caption for case in batch], torch.stack([poses(config, case) for case in batch]),
                    config.steps, config.guidance_scale, rngs, config.negative_prompt,
                )  # fmt: skip
                pictures = to_uint8(views)
                write_atomic(path, save({"views": torch.from_numpy(pictures)}, told))
            drawn += list(pictures)
            count.add(len(batch))
    return drawn


def read_batch(path: Path, told: dict[str, str]) -> np.ndarray | None:
    """A batch from its file, (n, V, H, W, 3) uint8; None if it is missing, damaged, or not of this prior."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != told:
                logger.warning("%s was drawn by another prior or from other captions; sampling it again", path)
                return None
            return file.get_tensor("views").numpy()
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s); sampling it again", path, str(error).split("\n")[0])
        return None


def fingerprint(prior: Any) -> str:
    """16 hex digits of the weights, so that samples of an earlier state are not taken for this one's."""
    digest = hashlib.sha256()
    for network in prior.networks.values():
        for value in network.state_dict().values():
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


# --- the report --------------------------------------------------------------------------------------------------


def write(
    config: EvaluatePriorConfig,
    folder: Path,
    cases: list[Case],
    drawn: list[np.ndarray],
    measured: list[Verdict],
    truth: list[Verdict],
) -> None:
    """report.json, report.md and sheet.png."""
    captions = [case.caption for case in cases]
    rows = worst(captions, measured, config.worst)
    figures = {
        "samples": len(cases),
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "measured": figures_plain(measured),
        "probe_on_truth": figures_plain(truth),
        "probe_accuracy": read_card(locate(config.probe.weights)).get("accuracy"),
        "worst": rows,
        "objects": [
            {"caption": text, **verdict.plain()} for text, verdict in zip(captions, measured, strict=True)
        ],
    }
    text = f"""# What the prior draws

{len(cases)} held-out combinations, {config.n_view} views each from a random first azimuth, DDIM {config.steps} steps,
guidance {config.guidance_scale:g}, seed {config.seed}. Judged by the probe; beside it the probe's answers on
ground-truth renders of the same captions from the same cameras: more than that the meter cannot be expected to give.

{table(measured, truth, KEYS)}

Order: of all ways to give the four sides to the views, the most probable is the one that the cameras say. A single
view's side counts as right within 15 degrees of its quarter.

## The worst

{worst_text(rows)}
"""
    write_report(folder, text, figures)
    shown = np.linspace(0, len(cases) - 1, min(config.sheet, len(cases))).astype(int)
    pictures, below = [drawn[k] for k in shown], [captions[k] for k in shown]
    write_sheet(folder / "sheet.png", pictures, below, [measured[k] for k in shown])
