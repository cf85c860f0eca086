"""Stages of the GPU benchmark: training steps at full size, and the training loop in mixed precision."""

import itertools
import math
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile

from threedgen.config import load
from threedgen.systems.generate.phases import StepResult
from threedgen.systems.generate.system import GenerateSystem
from threedgen.testing import tiny_prior
from threedgen.train.loop import fit
from threedgen.train.status import Status

from .gpu import ROOT
from .gpu_networks import make_prior
from .gpu_stage import Bench
from .mvdream import TOKENS, first_step
from .scene import stepper

SMALL = [
    "threads=1", "march.samples=16", "field.width=8", "field.encoding.n_levels=2", "occupancy.resolution=8",
    "field.encoding.log2_hashmap_size=8", "occupancy.interval=2", "occupancy.warmup=2", "trainer.precision=bf16-mixed",
    "trainer.accelerator=cpu", "scenes_per_step=1", "size={0: 8, 4: 16}", "prior.dtype=fp32",
]  # fmt: skip
TIMED_SECONDS = 8.0  # time after which no further step is timed
PROFILED, TOP = 2, 20


def step_64(bench: Bench) -> None:
    steps(bench, "mvdream-sd21", 8 if bench.small else 64)


def step_256(bench: Bench) -> None:
    steps(bench, "mvdream-sd21", 16 if bench.small else 256)


def step_shading(bench: Bench) -> None:
    for size in (8, 16) if bench.small else (64, 256):
        steps(bench, "mvdream-sd21-shading", size)


def steps(bench: Bench, name: str, size: int) -> None:
    """Record time, memory, host synchronisations and kernels of training steps of config `name` at `size` pixels."""
    config = load(name, ["prompt=nothing", *(SMALL if bench.small else [])])
    prior = make_prior(bench, config.prior.dtype)
    text = torch.randn(2, TOKENS, prior.unet.config["cross_attention_dim"], generator=torch.Generator().manual_seed(0))
    system = GenerateSystem(config, prior, text).to(bench.device).train()
    begin, case = first_step(config, size), f"{name} {size} px"
    system.before_step(0)  # updates all cells of the occupancy grid
    step = stepper(system)
    with bench.peak() as peak:
        bench.synchronise()
        start = time.perf_counter()
        loss = step(begin)
        bench.synchronise()
        first = time.perf_counter() - start
        bench.record(
            f"{case}, first step",
            seconds=first,
            peak_gb=peak(),
            chunk=system.chunks.last or 0,
            ok=bool(loss.isfinite()),
        )
    with bench.peak() as peak:
        times, end = [], time.perf_counter() + (1 if bench.small else TIMED_SECONDS)
        for number in itertools.islice(itertools.count(begin + 1), 32):
            start = time.perf_counter()
            step(number)
            bench.synchronise()
            times.append(1e3 * (time.perf_counter() - start))
            if time.perf_counter() > end:
                break
        bench.record(case, ms=median(times), worst_ms=max(times), steps=len(times), peak_gb=peak())
    with bench.case(f"{case}, synchronisations"), synchronisations(bench) as found:
        step(begin + 1)
    bench.record(f"{case}, synchronisations", count=sum(found.values()), places=dict(found.most_common()))
    with bench.case(f"{case}, profile"):
        bench.record(f"{case}, profile", **profiled(bench, case, lambda: [step(begin + 1) for _ in range(PROFILED)]))


@contextmanager
def synchronisations(bench: Bench) -> Iterator[Counter[str]]:
    """Yield a counter of host synchronisations by the place in this project that causes them: "file:line function"."""
    found: Counter[str] = Counter()

    def note(message: Any, *_: object, **__: object) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [f for f in traceback.extract_stack() if str(ROOT) in f.filename and "benchmarks" not in f.filename]
        last = frames[-1] if frames else None
        found[f"{Path(last.filename).relative_to(ROOT)}:{last.lineno} {last.name}" if last else "libraries"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if bench.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def profiled(bench: Bench, case: str, run: Any) -> dict[str, float]:
    """Profile `run`, which runs PROFILED steps, and return totals per step.

    The TOP operators by time are written to profiles.txt under the title `case`. The totals are the number of kernel
    launches, the number of operators, and the GPU time in ms.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
        bench.synchronise()
    events: list[Any] = list(profiler.key_averages())

    on_gpu = [e for e in events if str(e.device_type).endswith("CUDA") and not getattr(e, "is_user_annotation", False)]

    def device_us(event: Any) -> float:
        return float(getattr(event, "self_device_time_total", getattr(event, "self_cuda_time_total", 0.0)))

    def host_us(event: Any) -> float:
        return float(event.self_cpu_time_total)

    for title, us, kind in (("GPU", device_us, on_gpu), ("host", host_us, events)):
        top = sorted(kind, key=us, reverse=True)[:TOP]
        lines = [f"{us(e) / 1e3 / PROFILED:10.3f} ms {e.count / PROFILED:8.0f} x {e.key[:120]}" for e in top]
        bench.note(f"{case}, {title} time per step", "\n".join(lines))
    launches = sum(e.count for e in events if "LaunchKernel" in e.key)
    return {
        "kernel_launches": launches / PROFILED,
        "operators": sum(e.count for e in events if e.key.startswith("aten::")) / PROFILED,
        "gpu_ms": sum(map(device_us, on_gpu)) / 1e3 / PROFILED,
    }


# --- the training loop


class BrokenStep(GenerateSystem):
    """System whose loss is NaN at step 5, to test how the training loop handles it."""

    def distillation_loss(self, step: int) -> StepResult:
        result = super().distillation_loss(step)
        return result._replace(loss=result.loss * math.nan) if step == 5 else result


class StopAt(pl.Callback):
    """Callback that stops a training after `steps` steps, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps


def loop(bench: Bench) -> None:
    """Train the field of mvdream-sd21 with a tiny prior in mixed precision, and check resuming and a NaN loss.

    There are two equal trainings of 40 steps, a third that is stopped and resumed after 20 steps, and a fourth with a
    NaN loss at step 5. On a GPU atomic additions have no fixed order, so the difference between the two equal trainings
    is the tolerance for the resumed one.
    """
    total, half = (8, 4) if bench.small else (40, 20)
    words = ["prompt=nothing", "prior.dtype=fp32", "trainer.devices=1", "trainer.val_check_interval=0"]
    words += [f"trainer.max_steps={total}", "size=32", "occupancy.warmup=4", *(SMALL if bench.small else [])]
    config = load("mvdream-sd21", words)
    prior = tiny_prior().to(bench.device)
    text = torch.randn(2, *prior.text_shape, generator=torch.Generator().manual_seed(0))
    where = bench.folder / "loop"

    def run(
        name: str, kind: type[GenerateSystem] = GenerateSystem, stop: int | None = None, resume: bool = False
    ) -> tuple[Status, torch.Tensor, Any]:
        torch.manual_seed(0)
        system = kind(config, prior, text)
        start = time.perf_counter()
        callbacks = [] if stop is None else [StopAt(stop)]
        status = fit(system, config, where / name, resume=resume, quiet=True, callbacks=callbacks)
        vector = torch.cat([p.detach().flatten().float().cpu() for p in system.parameters()])
        bench.record(
            f"loop {name}{', resumed' if resume else ''}",
            status=status.value,
            steps=system.trainer.global_step,
            seconds=time.perf_counter() - start,
            loss_scale=scale_of(system),
            ok=bool(vector.isfinite().all()),
        )
        return status, vector, system

    _, whole, _ = run("whole")
    _, again, _ = run("again")
    run("parts", stop=half)
    status, parts, _ = run("parts", resume=True)
    apart = float((again - whole).norm() / whole.norm())
    error = float((parts - whole).norm() / whole.norm())
    bench.record(
        "loop, resumed against whole",
        error=error,
        two_wholes=apart,
        ok=status is Status.FINISHED and error <= max(10 * apart, 1e-6),
    )
    status, _, _ = run("broken", BrokenStep)
    bench.record("loop, NaN at step 5", status=status.value, ok=status is Status.FINISHED)


def scale_of(system: GenerateSystem) -> float:
    """Return the current factor of the loss scaler for float16; 0 if there is no scaler."""
    scaler = getattr(system.trainer.precision_plugin, "scaler", None)
    return 0.0 if scaler is None else float(scaler.get_scale())
