"""Base classes of training modules, moving average of weights, and timestep sampling."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from threedgen.config import Config, Scheduled, at, dump
from threedgen.config.sections import BETAS
from threedgen.geometry.images import write_png
from threedgen.run.progress import ProgressDisplay
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.checkpoint_file import CheckpointData
from threedgen.train.muon import Muon

METRICS_KEY, SECONDS_KEY = "metrics", "seconds"


class System(pl.LightningModule):
    """Base class of all training modules: a LightningModule with reproducible random numbers.

    A subclass implements `training_step(batch, index)`, which returns the loss. `batch` is no data, but the number of
    the batch since the start of the run, from 0. `index` is Lightning's `batch_idx`, which is not needed. The
    generators that `rng` returns depend only on the run's seed, the step, a purpose such as "cameras", and the rank.

    A subclass may override three methods that have no effect by default. `validate(step, folder)` writes images or
    other files to the run folder during training. `resize(state)` gives tensors whose shapes change in training the
    shapes in the state dict `state`, which is loaded next to resume a run. `elementwise()` returns parameters that
    AdamW must update instead of Muon.

    Attributes:
        stage: text in front of the progress display, by default "training"; may change during training.
        config_yaml: config of the run (or the section of it that the constructor got) without `out`, and further facts
            such as the checksum of a vocabulary, as YAML; saved in checkpoints and compared on resume.
        weights: SHA-256 of the weight files that the run starts from, by config key; saved in checkpoints and compared
            on resume.
        terms: terms of the last loss by name; they are logged, and named in the error if one is not finite.
        metrics: newest values of metrics by name. All are logged; the progress display shows those that the argument
            `metrics` of `train.loop.fit` names.
        track_progress: function (stage, total) -> context whose value is the `ProgressDisplay` of a long computation of
            `total` steps inside a training step.
        options: config section with the options of the optimizer; set by subclasses.
        rate: learning rate, a number or schedule {step: value}; None: `options.learning_rate`.
        weight_decay: weight decay of the optimizer.
    """

    stage = "training"

    def __init__(self, config: Config, seed: int | None = None, max_steps: int | None = None, **facts: str) -> None:
        """Store the config, and read the seed and the number of optimisation steps from it.

        If `config` is only a section (nested config) of the run's config, pass `seed` and `max_steps`, which it lacks.
        `facts` are additional values that must be equal on resume, such as the checksum of a vocabulary.
        """
        super().__init__()
        self.seed: int = getattr(config, "seed") if seed is None else seed  # noqa: B009  not of all sections
        self.max_steps: int = getattr(config, "trainer").max_steps if max_steps is None else max_steps  # noqa: B009
        without_out = config.model_copy(update={"out": None}) if "out" in type(config).model_fields else config
        self.config_yaml = dump(without_out) + "".join(f"{name}: {fact}\n" for name, fact in facts.items())
        self.weights: Mapping[str, str] = {}
        self.metrics: dict[str, Tensor | float] = {}
        self.terms: Mapping[str, Tensor | float] = {}
        self.track_progress: Callable[[str, int], AbstractContextManager[ProgressDisplay]] = partial(
            ProgressDisplay, quiet=True
        )
        self.run_start = self.training_start = time.monotonic()
        self.previous_seconds = {"prepare": 0.0, "optimise": 0.0}  # of earlier processes, up to the checkpoint

    @property
    def process(self) -> tuple[int, int]:
        """Pair (rank of this process, number of processes that train together); (0, 1) without a trainer."""
        return (self.global_rank, self.trainer.world_size) if getattr(self, "_trainer", None) else (0, 1)

    def cache_step(self, step: int, share: float = 1.0) -> int:
        """Return the argument `step` of `sample_entries` if each process trains on new cache entries of its own.

        It is the estimated number of earlier batches of all processes that used the same cache. `step` is the number of
        the batch of this process, and `share`, in [0, 1], the share of the batches that use this cache.
        """
        rank, count = self.process
        return int(step * share) * count + rank

    def optimisation_step(self, step: int) -> int:
        """Return the number of the optimisation step to which the batch with the number `step` belongs."""
        return step // (self.trainer.accumulate_grad_batches if getattr(self, "_trainer", None) else 1)

    def set_unregistered(self, **objects: object) -> None:
        """Set attributes that torch does not register, such as frozen networks, so checkpoints do not contain them."""
        for name, value in objects.items():
            object.__setattr__(self, name, value)

    def rng(self, step: int, purpose: str) -> torch.Generator:
        """Return a new torch generator on the CPU, seeded by the run's seed, step, purpose and rank.

        `purpose` is a text such as "cameras". Use each purpose only once per step: equal arguments give equal numbers.
        """
        return generator(self.seed, step, purpose, self.global_rank)

    def numpy_rng(self, step: int, purpose: str) -> np.random.Generator:
        return numpy_generator(self.seed, step, purpose, self.global_rank)

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent so far: {"prepare": before the training, "optimise": in the training}.

        Both are summed over the first start of the run and all resumptions.
        """
        now = {"prepare": self.training_start - self.run_start, "optimise": time.monotonic() - self.training_start}
        return {name: before + now[name] for name, before in self.previous_seconds.items()}

    def resize(self, state: dict[str, Tensor]) -> None:
        """Resize the tensors of this module whose shapes change in training, to the shapes in the state dict `state`.

        Called on resume, before `state` is loaded. The base class does nothing.
        """

    def log_image(self, name: str, image: Tensor) -> None:
        """Write an RGB image, floats (H, W, 3) in [0, 1], to RUN/images/NAME-STEP.png, and send it to the loggers.

        RUN is the run folder, NAME is `name`, STEP is the current step in six digits. Ranks other than 0 do nothing.
        """
        if self.global_rank:
            return
        folder = Path(self.trainer.default_root_dir) / "images"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{name}-{self.global_step:06d}.png", image.detach())
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, image.detach(), self.global_step, dataformats="HWC")
            elif hasattr(logger, "log_image"):
                logger.log_image(name, [image.detach().cpu().numpy()], step=self.global_step)

    def on_save_checkpoint(self, checkpoint: CheckpointData) -> None:
        checkpoint[SECONDS_KEY] = self.seconds()
        # metrics that are not measured at every step are logged until the next measurement, also after a resume
        checkpoint[METRICS_KEY] = {n: float(v) if math.isfinite(v) else None for n, v in self.metrics.items()}

    def on_load_checkpoint(self, checkpoint: CheckpointData) -> None:
        self.metrics = {name: math.nan if v is None else v for name, v in checkpoint[METRICS_KEY].items()}
        self.previous_seconds = checkpoint[SECONDS_KEY]

    options: Any  # config section with the optimizer options
    rate: Scheduled | None = None  # learning rate; None: options.learning_rate
    weight_decay = 0.01

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters and its learning rate schedule, as the dict that Lightning expects.

        The optimizer is AdamW, or Muon if `options.optimizer` has another value than "adamw". The learning rate is
        `rate`, or `options.learning_rate` if `rate` is None.
        """
        o, decay = self.options, self.weight_decay
        betas, rate = getattr(o, "betas", BETAS), o.learning_rate if self.rate is None else self.rate
        if getattr(o, "optimizer", "adamw") == "adamw":
            return self.adamw(self.parameters(), rate, weight_decay=decay, betas=betas)
        muon = Muon(self.parameters(), 1.0, betas, weight_decay=decay, elementwise=self.elementwise())
        return self.scheduled(muon, rate)

    def elementwise(self) -> Iterable[torch.Tensor]:
        """Return parameters with two or more dimensions that AdamW must update instead of Muon, such as embeddings.

        The base class returns none.
        """
        return ()

    def adamw(
        self, params: Iterable[Any], *rates: Scheduled, weight_decay: float = 0.0, betas: tuple[float, float] = BETAS
    ) -> OptimizerLRSchedulerConfig:
        """Return AdamW with learning rate schedules, as the dict that `configure_optimizers` returns.

        `params` are parameters or torch's parameter groups. `rates` has one learning rate, a number or schedule
        {step: value}, for all parameter groups, or one for each.
        """
        optimizer = torch.optim.AdamW(params, lr=1.0, betas=betas, weight_decay=weight_decay, fused=True)
        return self.scheduled(optimizer, *rates)

    def scheduled(self, optimizer: torch.optim.Optimizer, *rates: Scheduled) -> OptimizerLRSchedulerConfig:
        """Add learning rate schedules to an optimizer. Return both as the dict that `configure_optimizers` returns.

        `rates` has one schedule for all parameter groups, or one for each. A schedule is a config value (a number or
        {step: value}) or a function from the step to a number. The learning rate is the value of the schedule times the
        `lr` with which the optimizer was built. Build it with `lr` 1 if the values are learning rates, not factors.
        """
        steps = [rate if callable(rate) else partial(at, rate, max_steps=self.max_steps) for rate in rates]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, steps if len(steps) > 1 else steps[0])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validate(self, step: int, folder: Path) -> None:
        """Write validation images or other files to the run folder `folder` after `step` steps.

        The caller has set eval mode and disabled gradients. The base class writes nothing.
        """


class EMA(torch.nn.Module):
    """Exponential moving average of a model's weights, in persistent float32 buffers so that checkpoints contain it.

    Call `update` in the LightningModule's `optimizer_step`, after the optimizer, and not in on_train_batch_end, which
    runs after the checkpoint. The decay is min(decay, (1 + step) / (10 + step)), so that the initial weights soon lose
    their influence.

    Args:
        model: model whose weights are copied; no reference to it is kept.
        decay: largest weight of the old average in an update, in [0, 1).
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        for name, value in model.state_dict().items():
            copy = value.detach().clone()
            # buffer names must not contain dots; the first / avoids clashes with attributes such as `training`
            self.register_buffer("/" + name.replace(".", "/"), copy.float() if copy.is_floating_point() else copy)

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move the averages towards the weights of `model`; copy integer tensors.

        The new average is d * old average + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)) and the
        constructor's `decay`. `step` is the number of optimisation steps done.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, state = self.weights(), model.state_dict()
        floating = [name for name in state if averages[name].is_floating_point()]
        for name in state.keys() - set(floating):
            averages[name].copy_(state[name])
        weights = [state[name].to(averages[name].dtype) for name in floating]
        torch._foreach_lerp_([averages[name] for name in floating], weights, 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights with the names of the model's state_dict. The tensors are not copied."""
        return {name[1:].replace("/", "."): value for name, value in self.named_buffers()}

    @contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Replace the weights of `model` by the averaged weights inside a context, and restore them on exit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights())
        try:
            yield
        finally:
            model.load_state_dict(own)


class AveragedSystem(System):
    """Training module that keeps an exponential moving average of the weights of one network.

    A subclass calls `keep_average(network, decay)` to start the average; before this call there is none. The
    average is updated after each optimisation step.
    """

    average: EMA
    averaged: torch.nn.Module | None = None

    def keep_average(self, network: torch.nn.Module, decay: float) -> None:
        self.average = EMA(network, decay)
        self.set_unregistered(averaged=network)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.average.update(self.averaged, self.global_step)

    def average_applied(self) -> AbstractContextManager[None]:
        """Return a context in which the averaged network has the averaged weights; no effect if there is no average."""
        return nullcontext() if self.averaged is None else self.average.applied(self.averaged)


def stratified_uniform(count: int, rng: torch.Generator) -> Tensor:
    """Sample (count,) float numbers in [0, 1), one in each of `count` equal intervals, in random order.

    This lowers the variance of the loss between steps (Kingma et al. 2021, "Variational Diffusion Models").
    """
    return (torch.rand(count, generator=rng) + torch.randperm(count, generator=rng)) / count


def sample_timesteps(
    count: int, T: int, power: float, rng: torch.Generator, logit_normal: tuple[float, float] | None = None
) -> Tensor:
    """Sample int64 timesteps (count,) of a diffusion process with T timesteps: floor(T u^power), with stratified u.

    `stratified_uniform` gives u in [0, 1), so the timesteps are 0 to T - 1. If `logit_normal` = (mean, standard
    deviation) is set, `power` is ignored and the timesteps are logit-normal (Esser et al. 2024, arXiv 2403.03206,
    section 3.1): the logit of t / T is normal with these parameters.
    """
    u = stratified_uniform(count, rng)
    if logit_normal is None:
        u = u**power
    else:
        mean, std = logit_normal
        u = torch.sigmoid(mean + std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6)))
    return (T * u).long().clamp(max=T - 1)
