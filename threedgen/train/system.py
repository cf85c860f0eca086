"""The base of every module that learns here: what a run, its checkpoints and its progress line ask of it; and the
average of its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from threedgen.config import Config, at, dump
from threedgen.config.sections import BETAS
from threedgen.run.progress import Count
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.muon import Muon

METRICS_KEY, SECONDS_KEY = "metrics", "seconds"


class System(pl.LightningModule):
    """A LightningModule whose randomness is keyed by step and purpose and whose frozen networks are in no checkpoint.

    `stage`: what the progress bar says, may change. `config_yaml`: the resolved config, is in the checkpoint and
    compared on resume; so are the SHA-256s of what it is made with, `weights`, by the keys of the config that name
    it. `terms`: of the last loss, logged, and named when one is not finite. `metrics`: of the last step, logged, and
    shown if asked for. `counted(stage, total)` shows something that a step has to do first and that takes long.
    """

    stage = "training"

    def __init__(self, config: Config, seed: int | None = None, max_steps: int | None = None, **facts: str) -> None:
        """`config`: of a whole run, or a section of it, whose `seed` and `max_steps` are then given.

        A checkpoint is only resumed under the same config and `facts`, such as the digest of a tokenizer's vocabulary.
        """
        super().__init__()
        whole: Any = config
        self.seed: int = whole.seed if seed is None else seed
        self.max_steps: int = whole.trainer.max_steps if max_steps is None else max_steps
        placeless = config.model_copy(update={"out": None}) if "out" in type(config).model_fields else config
        self.config_yaml = dump(placeless) + "".join(f"{name}: {fact}\n" for name, fact in facts.items())
        self.weights: Mapping[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.terms: dict[str, float] = {}
        self.counted: Callable[[str, int], AbstractContextManager[Count]] = partial(Count, quiet=True)
        self.begun = self.started = time.monotonic()  # the run, and its training
        self.earlier = {"prepare": 0.0, "optimise": 0.0}  # seconds of earlier starts, up to the checkpoint

    def hold(self, **objects: Any) -> None:
        """Sets attributes that are no part of the module: frozen networks, neither trained nor in checkpoints."""
        for name, value in objects.items():
            object.__setattr__(self, name, value)  # torch would register them

    def rng(self, step: int, purpose: str) -> torch.Generator:
        """A fresh generator of this step, purpose and device; what must be equal on all devices is drawn without."""
        return generator(self.seed, step, purpose, self.global_rank)

    def numpy_rng(self, step: int, purpose: str) -> np.random.Generator:
        """The same for numpy."""
        return numpy_generator(self.seed, step, purpose, self.global_rank)

    def seconds(self) -> dict[str, float]:
        """Seconds before the training and in it, in all starts of the run."""
        now = {"prepare": self.started - self.begun, "optimise": time.monotonic() - self.started}
        return {name: before + now[name] for name, before in self.earlier.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the time, and the metrics: some are measured now and then, and logged until they are measured again."""
        checkpoint[SECONDS_KEY] = self.seconds()
        checkpoint[METRICS_KEY] = {n: float(v) if math.isfinite(v) else None for n, v in self.metrics.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back, so that a run logs the same as one without a stop."""
        found = checkpoint.get(METRICS_KEY)
        known = found.items() if isinstance(found, dict) else ()
        self.metrics = {str(n): math.nan if v is None else v for n, v in known if v is None or isinstance(v, float)}
        spent = checkpoint.get(SECONDS_KEY)
        if isinstance(spent, dict):
            self.earlier = {n: v if isinstance(v := spent.get(n), float) else 0.0 for n in self.earlier}

    options: Any
    """The section of the config that says how it learns."""

    def configure_optimizers(self) -> Any:
        """AdamW on all parameters, or Muon where there is an option that says so; a module that learns otherwise has
        its own."""
        o = self.options
        betas = getattr(o, "betas", BETAS)
        if getattr(o, "optimizer", "adamw") == "adamw":
            return self.adamw(self.parameters(), o.learning_rate, weight_decay=o.weight_decay, betas=betas)
        muon = Muon(self.parameters(), 1.0, betas, weight_decay=o.weight_decay, elementwise=self.elementwise())
        return self.scheduled(muon, o.learning_rate)

    def elementwise(self) -> Iterable[torch.Tensor]:
        """Matrices that Muon leaves to AdamW."""
        return ()

    def adamw(
        self, parameters: Iterable[Any], *rates: Any, weight_decay: float = 0.0, betas: tuple[float, float] = BETAS
    ) -> dict[str, Any]:
        """AdamW on parameters, or groups of them, with learning rates as for `scheduled`."""
        optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=betas, weight_decay=weight_decay, fused=True)
        return self.scheduled(optimizer, *rates)

    def scheduled(self, optimizer: torch.optim.Optimizer, *rates: Any) -> dict[str, Any]:
        """What configure_optimizers returns, for an optimizer whose learning rate is multiplied by a rate.

        `rates`: a schedule of the config, or a function of the step, for all groups of parameters, or one for each.
        """
        steps = [rate if callable(rate) else partial(at, rate, max_steps=self.max_steps) for rate in rates]
        rate: Any = steps if len(steps) > 1 else steps[0]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validate(self, step: int, folder: Path) -> None:
        """Writes what there is to see after `step` steps; called in eval mode, without gradients."""

    def forget(self, step: int, folder: Path) -> None:
        """Takes away what `validate` left of this step alone, at which a run stopped that now goes on."""


class EMA(torch.nn.Module):
    """The averaged weights as persistent buffers, so that a checkpoint has them without being told.

    Call `update` inside the step, after the optimiser (in the Lightning module's `optimizer_step`), never in
    its on_train_batch_end: checkpoints are saved before that. The decay grows as (1 + step) / (10 + step) up
    to `decay`, so that a short run is not an average with its first random weights; it depends on the step
    given and on no counter of its own.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999) -> None:
        """Starts from a copy of `model`; it keeps no reference to it. `decay` in [0, 1)."""
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay should be in [0, 1) (got {decay})")
        self.decay = decay
        for name, value in model.state_dict().items():
            kept = value.detach().clone()
            # torch allows no dots in names of buffers; the first / keeps a `decay` or `training` from our own
            self.register_buffer("/" + name.replace(".", "/"), kept.float() if kept.is_floating_point() else kept)

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """average += (1 - decay(step)) (weights - average); whole numbers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, now = self.weights(), model.state_dict()
        floating = [name for name in now if averages[name].is_floating_point()]
        for name in now.keys() - set(floating):
            averages[name].copy_(now[name])
        weights = [now[name].to(averages[name].dtype) for name in floating]
        torch._foreach_lerp_([averages[name] for name in floating], weights, 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The averaged state_dict, under the model's own names (not copied)."""
        return {name[1:].replace("/", "."): value for name, value in self.named_buffers()}

    @contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged weights; afterwards its own again, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights())
        try:
            yield
        finally:
            model.load_state_dict(own)


class AveragedSystem(System):
    """A system whose result is `average`, the running average of the weights of one network."""

    average: EMA
    averaged: torch.nn.Module

    def keep_average(self, network: torch.nn.Module, decay: float) -> None:
        """Begins the average of a network that learns."""
        self.average = EMA(network, decay)
        self.hold(averaged=network)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.averaged, self.global_step)


def stratified(count: int, rng: torch.Generator) -> Tensor:
    """`count` numbers in [0, 1), one in each of as many equal intervals, in random order (Kingma et al. 2021, "VDM"):
    the loss of a step then depends less on which noise levels it happened to draw."""
    return (torch.rand(count, generator=rng) + torch.randperm(count, generator=rng)) / count


def timesteps(count: int, T: int, power: float, rng: torch.Generator) -> Tensor:
    """Noise levels (count,) of 0 ... T - 1, t = T u^power, spread evenly."""
    return (T * stratified(count, rng) ** power).long().clamp(max=T - 1)
