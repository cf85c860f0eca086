"""Compare training steps of MV-Adapter on a frozen 2D model with full multi-view fine-tuning as in MVDream.

The metrics are trainable parameters, time and peak memory (arXiv 2412.03632, table 4).
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvadapter.inputs import RAY_VIEWS, cameras_from_angles
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings
from threedgen.toybox.training.networks import multiview_model

from .mvdiffusion_sides import peak_bytes, reset_peak
from .table import Row, Table

FULL = "all weights, as MVDream"
BRANCHES: dict[str, tuple[Any, ...]] = {"adapter, from text": ("mv",), "adapter, from an image": ("mv", "ref")}
"""Case -> attention branches that the adapter adds."""
BASE, OBJECTS = "toybox-base", 8


class Measured(NamedTuple):
    """Results of a measurement.

    Attributes:
        parameters: number of trainable parameters.
        seconds: duration of each step.
        peak: peak memory of the steps in bytes, of the process or GPU, without the memory before networks were loaded.
    """

    parameters: int
    seconds: list[float]
    peak: int


def table(rounds: int, device: str) -> Table:
    """Return a row for each case. Each case runs in its own process, with `rounds` timed steps on `device`."""
    results = {case: run_in_process(case, rounds, device) for case in (FULL, *BRANCHES)}
    notes = [
        f"{BASE}, {device}, {OBJECTS} objects of {len(RAY_VIEWS)} views in a step, AdamW, {torch.get_num_threads()} "
        f"threads; {rounds} steps after a first one. GB of the process without its libraries, or of the GPU."
    ]
    return Table(
        "A training step of MV-Adapter", [row(case, result, results[FULL]) for case, result in results.items()], notes
    )


def row(case: str, measured: Measured, full: Measured) -> Row:
    """Return the table row of a case, with ratios to the measurement `full` of full fine-tuning."""
    seconds = median(measured.seconds)
    return {
        "case": case,
        "trainable, M": measured.parameters / 1e6,
        "median, s": seconds,
        "ratio": seconds / median(full.seconds),
        "peak GB": measured.peak / 1e9,
        "peak ratio": measured.peak / full.peak,
    }


def run_in_process(case: str, steps: int, device: str) -> Measured:
    """Measure a case in a new process, so that its peak memory does not include other cases."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, steps, device, torch.get_num_threads()).result()


def measure(case: str, steps: int, device: str, threads: int) -> Measured:
    """Measure `steps` training steps of a case, after one untimed step, with `threads` CPU threads."""
    torch.set_num_threads(threads)
    reset_peak(device)
    libraries = peak_bytes(device)
    model, trainable = full(device) if case == FULL else adapter(BRANCHES[case], device)
    optimizer, seconds = torch.optim.AdamW(trainable.parameters(), lr=1e-4), list[float]()
    n_view, size = len(RAY_VIEWS), model.image_size
    camera: Any = model.camera(cameras_from_angles(RAY_VIEWS, size, size).c2w.to(device).repeat(OBJECTS, 1, 1))
    text = model.encode_prompt(["a red car"] * OBJECTS)
    for step in range(1 + steps):
        if step == 1:
            reset_peak(device)
        start = time.perf_counter()
        z, t = torch.randn(OBJECTS * n_view, *model.latent_shape, device=device), torch.tensor(500, device=device)
        extra = {}
        if "ref" in BRANCHES.get(case, ()):
            with model.autocast():
                extra["reference"] = model.adapted.reference_features(z[::n_view], text)
        loss = model.network(z, t, text.repeat_interleave(n_view, 0), camera, n_view, **extra).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())  # synchronises the GPU
        seconds.append(time.perf_counter() - start)
    return Measured(sum(p.numel() for p in trainable.parameters()), seconds[1:], peak_bytes(device) - libraries)


def full(device: str) -> tuple[Any, nn.Module]:
    """Return the 2D model extended to several views as in MVDream, and the trainable part: the UNet."""
    model = multiview_model(LatentDiffusion.load(BASE, device=device), None).to(device)
    return model, model.unet.requires_grad_(True).train()


def adapter(branches: tuple[Any, ...], device: str) -> tuple[Any, nn.Module]:
    """Return the 2D model with an adapter that has the attention `branches`, and the trainable part: the adapter."""
    model = MVAdapter.load(BASE, device=device)
    network = AdaptedUNet(model.unet, model.factor, AdapterSettings(), branches)
    return model.with_network(network), network.new_parts
