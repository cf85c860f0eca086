"""Novel views and their score: calls of the X-UNet, views a minute, a field fitted to the views of one scene."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from threedgen.data.srn.make import Job as Picture
from threedgen.data.srn.make import scene
from threedgen.data.srn.options import MakeSRNToyboxConfig
from threedgen.evaluation.consistency.held_out import held_out_places
from threedgen.evaluation.consistency.scenes import Scene
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import psnr
from threedgen.geometry.rigs import orbit
from threedgen.guidance.threedim import folder
from threedgen.guidance.threedim.options import XUNetConfig
from threedgen.guidance.threedim.sampler import sample_views
from threedgen.guidance.threedim.xunet import XUNet
from threedgen.representations.fit import Bounds, fit
from threedgen.representations.options import SubsampledProtocolConfig
from threedgen.run.metrics import peak_memory

from .clock import interleaved, ratio
from .table import Row, Table

BATCH = 8
"""Pairs in a call, as when some scenes are sampled together."""
VIEWS, SIZE = 251, 64
"""The protocol's scene."""
STEPS, GUIDANCE = 32, 3.0
PROTOCOL = SubsampledProtocolConfig()
LONGER = 10


def tables(rounds: int, longer: bool) -> list[Table]:
    """Calls, sampling, fits; with ``longer`` also the fit of ten times as many steps."""
    return [calls(rounds), sampling(rounds), fits(longer)]


def embedded(image_size: int) -> XUNet:
    """The embedded network's sizes, at another resolution; random weights, which cost the same."""
    model, _ = folder.load("embedded")
    assert isinstance(model, XUNet)
    sides = tuple(side * image_size // model.config.size[0] for side in model.config.attn_resolutions)
    config = model.config.model_copy(update={"image_size": image_size, "attn_resolutions": sides})
    return XUNet(XUNetConfig.model_validate(config.model_dump())).eval()


def calls(rounds: int) -> Table:
    """One call of the toybox network at 64 x 64 pixels: float32, bfloat16, bfloat16 fused by torch.compile."""
    network, fused = embedded(SIZE), embedded(SIZE)
    fused.unet.compile()
    seconds = interleaved(
        {
            "float32": _call(network, False),
            "bfloat16": _call(network, True),
            "bfloat16, compiled": _call(fused, True),
        },
        rounds,
    )
    rows: list[Row] = [
        {
            "precision": name,
            "ms a pair": 1e3 * median(times) / BATCH,
            "times faster than float32": ratio(seconds["float32"], times),
        }
        for name, times in seconds.items()
    ]
    count = sum(p.numel() for p in network.parameters()) / 1e6
    note = f"{count:.1f} M parameters, {BATCH} pairs a call, no gradients; median of {rounds} interleaved rounds."
    return Table(f"X-UNet, one call at {SIZE} x {SIZE} pixels", rows, [note])


def _call(network: XUNet, half: bool) -> Callable[[], None]:
    at, rng = cameras(2 * BATCH, SIZE), torch.Generator().manual_seed(0)
    x, z = torch.randn(2, BATCH, 3, SIZE, SIZE, generator=rng)
    c2w, keep = at.c2w.unflatten(0, (BATCH, 2)), torch.ones(BATCH, dtype=torch.bool)

    @torch.no_grad()
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            network.predict(x, z, torch.zeros(BATCH), c2w, at.K[:BATCH], keep)

    return run


def sampling(rounds: int) -> Table:
    """Views a minute of the embedded model, alone and in a batch of scenes."""
    model, _ = folder.load("embedded")
    size = model.picture_size[0]
    cases = {f"{scenes}": _views(model, size, scenes) for scenes in (1, BATCH)}
    seconds = interleaved(cases, rounds)
    rows: list[Row] = [
        {"scenes together": name, "views a minute": 60 * int(name) / median(times)} for name, times in seconds.items()
    ]
    note = f"Embedded model, {size} x {size} pixels, {STEPS} steps, guidance {GUIDANCE:g} (two pairs a step), bfloat16."
    return Table("Sampling of novel views", rows, [note])


def _views(model: Any, size: int, scenes: int) -> Callable[[], None]:
    at = cameras(2, size)
    images = torch.zeros(scenes, 1, 3, size, size)
    c2w, K = at.c2w[None].expand(scenes, -1, -1, -1), at.K[:1].expand(scenes, -1, -1)

    def run() -> None:
        rngs = [torch.Generator().manual_seed(k) for k in range(scenes)]
        with torch.autocast("cpu", torch.bfloat16):
            sample_views(model, images, c2w[:, :1], c2w[:, 1:], K, rngs, steps=STEPS, guidance_scale=GUIDANCE)

    return run


def cameras(count: int, size: int) -> Cameras:
    return Cameras.of(orbit(count, float(np.deg2rad(20)), 2.6, float(np.deg2rad(40)), size, size))


def fits(longer: bool) -> Table:
    """A field fitted to ground truth: seconds, PSNR of the held-out views, peak memory of this process."""
    views = scene(MakeSRNToyboxConfig(task="make-srn-toybox", size=SIZE, test_views=VIEWS), Picture("cars", "test", 0))
    held = held_out_places(Scene("car", views.at, tuple(range(VIEWS))), 0.1, 0)
    rest = [k for k in range(VIEWS) if k not in held]
    fit(views.select(rest), Bounds.of(views.at), PROTOCOL.model_copy(update={"steps": 2}), 0)  # kernels are compiled
    truth, rows = views.select(held), []
    for count in (PROTOCOL.steps, LONGER * PROTOCOL.steps) if longer else (PROTOCOL.steps,):
        options, begun = PROTOCOL.model_copy(update={"steps": count}), time.perf_counter()
        field = fit(views.select(rest), Bounds.of(views.at), options, 0)
        seconds = time.perf_counter() - begun
        render = field.pictures(truth.at).clamp(0, 1).numpy()
        figures = [psnr(*pair) for pair in zip(truth.images.numpy(), render, strict=True)]
        row: Row = {"steps": count, "seconds": seconds, "PSNR, dB": float(np.mean(figures))}
        rows.append(row | {"peak memory, MB": round(peak_memory() or 0.0)})
    note = f"A marked car, {len(rest)} views of {SIZE} x {SIZE} pixels, protocol subsampled; {len(held)} held out."
    return Table("Field of the consistency score", rows, [note])
