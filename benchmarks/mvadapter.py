"""Training steps of MV-Adapter around a frozen 2D model, against fine-tuning all of that model for several views as
MVDream does: trainable parameters, time, peak memory (arXiv 2412.03632, table 4)."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from threedgen.guidance.mvadapter.cameras import RAY_VIEWS, views
from threedgen.guidance.mvadapter.form import Form
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.network import AdaptedUNet
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.systems.train_prior.system import multiview_model

from .mvdiffusion_sides import begin_peak, peak_bytes
from .table import Row, Table

FULL = "all weights, as MVDream"
BRANCHES: dict[str, tuple[Any, ...]] = {"adapter, from text": ("mv",), "adapter, from a picture": ("mv", "ref")}
"""By case, what the paper's adapters add."""
BASE, OBJECTS = "toybox-base", 8


class Measured(NamedTuple):
    """parameters: that learn.  seconds: of each step.  peak: bytes that the process holds in these steps, at most, on a
    GPU if it is on one, but for what it held before it had networks."""

    parameters: int
    seconds: list[float]
    peak: int


def table(rounds: int, device: str) -> Table:
    """A row for each case, each in a process of its own.  rounds: timed steps of each."""
    found = {case: alone(case, rounds, device) for case in (FULL, *BRANCHES)}
    notes = [
        f"{BASE}, {device}, {OBJECTS} objects of {len(RAY_VIEWS)} views in a step, AdamW, {torch.get_num_threads()} "
        f"threads; {rounds} steps after a first one. GB of the process, but for its libraries, or of a GPU."
    ]
    return Table("A training step of MV-Adapter", [row(case, each, found[FULL]) for case, each in found.items()], notes)


def row(case: str, measured: Measured, full: Measured) -> Row:
    """Beside what full fine-tuning takes."""
    seconds = median(measured.seconds)
    return {
        "case": case,
        "trainable, M": measured.parameters / 1e6,
        "median, s": seconds,
        "ratio": seconds / median(full.seconds),
        "peak GB": measured.peak / 1e9,
        "peak ratio": measured.peak / full.peak,
    }


def alone(case: str, steps: int, device: str) -> Measured:
    """Measures a case in a new process, whose memory is only its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, case, steps, device, torch.get_num_threads()).result()


def measure(case: str, steps: int, device: str, threads: int) -> Measured:
    """Makes the steps of a case."""
    torch.set_num_threads(threads)
    begin_peak(device)
    libraries = peak_bytes(device)
    model, learnt = full(device) if case == FULL else adapter(BRANCHES[case], device)
    optimizer, seconds = torch.optim.AdamW(learnt.parameters(), lr=1e-4), list[float]()
    n_view, size = len(RAY_VIEWS), model.image_size
    camera: Any = model.camera(views(RAY_VIEWS, size, size).c2w.to(device).repeat(OBJECTS, 1, 1))
    text = model.encode_prompt(["a red car"] * OBJECTS)
    for step in range(1 + steps):
        if step == 1:
            begin_peak(device)
        begun = time.perf_counter()
        z, t = torch.randn(OBJECTS * n_view, *model.latent_shape, device=device), torch.tensor(500, device=device)
        seen = {}
        if "ref" in BRANCHES.get(case, ()):
            with model.autocast():
                seen["reference"] = model.adapted.look_at(z[::n_view], text)
        loss = model.network(z, t, text.repeat_interleave(n_view, 0), camera, n_view, **seen).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss.detach())  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    return Measured(sum(p.numel() for p in learnt.parameters()), seconds[1:], peak_bytes(device) - libraries)


def full(device: str) -> tuple[Any, nn.Module]:
    """The 2D model with a camera branch and joined attention, and what learns: its UNet."""
    model = multiview_model(MVDream.load(BASE, camera=False, device=device), None).to(device)
    return model, model.unet.requires_grad_(True).train()


def adapter(branches: tuple[Any, ...], device: str) -> tuple[Any, nn.Module]:
    """The 2D model with an adapter, and what learns: the adapter."""
    model = MVAdapter.load(BASE, camera=False, device=device)
    network = AdaptedUNet(model.unet, model.factor, Form(), branches)
    return model.with_network(network), network.new_parts
