"""An exponential moving average of a model's weights, as state of the module that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
            self.register_buffer(_buffer_name(name), kept.float() if kept.is_floating_point() else kept)

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

    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged state_dict, under the model's own names (not copied)."""
        return {name[1:].replace("/", "."): value for name, value in self.named_buffers()}

    def copy_to(self, model: torch.nn.Module) -> None:
        """Overwrites the weights of `model` by their average."""
        model.load_state_dict(self.weights())

    @contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged weights; afterwards its own again, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own)


def _buffer_name(name: str) -> str:
    """torch allows no dots in names of buffers; the first / keeps a `decay` or `training` from our own."""
    return "/" + name.replace(".", "/")
