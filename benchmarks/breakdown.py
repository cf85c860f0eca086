"""Where the time of a generate step goes: stop watches around its parts, backward by hooks on gradients."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from threedgen.geometry.cameras import Cameras
from threedgen.representations.march import Composite, Samples
from threedgen.representations.volume import render as rendering
from threedgen.systems.generate import system as generate

from .scene import Bench, Stepper, points_of
from .step import START
from .table import Row, Table

PARTS = (
    "cameras", "occupancy grid", "march", "hash grid", "MLP", "composite", "VAE encoder", "UNet",
    "backward: VAE", "backward: composite", "backward: MLP", "backward: hash grid", "optimiser", "rest",
)  # fmt: skip


class Watch:
    """Seconds by part.  A part inside another counts as the outer one.  A GPU is waited for wherever time is read."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.open = False
        self.backward_part, self.mark = "", 0.0

    def now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def around(
        self, name: str, function: Callable[..., Any], after: Callable[..., None] | None = None
    ) -> Callable[..., Any]:
        """The function, timed; ``after`` sees its result."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.open:
                return function(*args, **kwargs)
            self.open, begun = True, self.now()
            try:
                result = function(*args, **kwargs)
            finally:
                self.open = False
                self.seconds[name] += self.now() - begun
            if after is not None:
                after(result)
            return result

        return timed

    def switch(self, part: str) -> None:
        """From now on the backward pass works for ``part``."""
        now = self.now()
        if self.backward_part:
            self.seconds[self.backward_part] += now - self.mark
        self.backward_part, self.mark = part, now

    def when_reached(self, tensor: torch.Tensor, part: str) -> None:
        """``part`` begins as soon as the gradient of ``tensor`` is known."""
        if tensor.requires_grad:
            tensor.register_hook(lambda grad: self.switch(part))


@contextmanager
def watched(system: generate.GenerateSystem) -> Iterator[Watch]:
    """Stop watches around the parts of one system's steps."""
    watch = Watch()
    field, prior = system.field, system.prior
    mlps = [field.density_mlp, *([field.feature_mlp] if field.feature_mlp is not None else [])]

    def composed(result: Composite) -> None:
        watch.when_reached(result.values, "backward: composite")

    def encoded(features: torch.Tensor) -> None:
        watch.when_reached(features, "backward: hash grid")

    def shaded(output: torch.Tensor) -> None:
        watch.when_reached(output, "backward: MLP")

    def seen(latents: torch.Tensor) -> None:
        watch.when_reached(latents, "backward: VAE")

    targets: list[tuple[Any, str, str, Callable[..., None] | None]] = [
        (generate, "sample_multiview", "cameras", None),
        (Cameras, "rays", "cameras", None),
        (rendering, "march", "march", None),
        (Samples, "positions", "march", None),
        (rendering, "composite", "composite", composed),
        (field.encoding, "forward", "hash grid", encoded),
        *((mlp, "forward", "MLP", shaded) for mlp in mlps),
        (prior, "encode_images", "VAE encoder", seen),
        (prior, "denoise", "UNet", None),
    ]
    if system.occupancy is not None:
        targets.append((system.occupancy, "update", "occupancy grid", None))
    with ExitStack() as stack:
        for owner, name, part, after in targets:
            stack.enter_context(patch.object(owner, name, watch.around(part, getattr(owner, name), after)))
        yield watch


def step_by_parts(stepper: Stepper, step: int) -> dict[str, float]:
    """Seconds of one step by part; "rest" is what no stop watch saw."""
    system = stepper.system
    with watched(system) as watch:
        begun = time.perf_counter()
        stepper.optimizer.zero_grad(set_to_none=True)
        loss = system.training_step(step, step)
        watch.switch("rest")
        loss.backward()
        watch.switch("")
        watch.around("optimiser", stepper.optimizer.step)()
        total = time.perf_counter() - begun
    parts = {name: watch.seconds.get(name, 0.0) for name in PARTS}
    parts["rest"] += total - sum(watch.seconds.values())
    return parts | {"total": total}


def table(bench: Bench, rounds: int, size: int) -> Table:
    """Milliseconds and shares; medians over whole rounds of the occupancy grid."""
    system = bench.system(f"size={size}")
    stepper = Stepper(system, frozen=True)
    interval = system.config.occupancy.interval if system.occupancy is not None else 1
    stepper.step(START)
    turns = []
    for _ in range(rounds):
        steps = [step_by_parts(stepper, START + k) for k in range(interval)]
        turns.append({name: sum(s[name] for s in steps) / interval for name in steps[0]})
    middle = {name: median(turn[name] for turn in turns) for name in turns[0]}
    rows: list[Row] = [
        {"part": name, "ms": 1e3 * seconds, "share %": 100 * seconds / middle["total"]}
        for name, seconds in middle.items()
    ]
    notes = [
        f"4 views of {size} x {size}, {bench.about}, {points_of(system, START)} points; "
        f"median of {rounds} rounds of {interval} steps; parts need not sum up to the median of the total.",
    ]
    return Table(f"Where the time of a step goes, {size} px", rows, notes)
