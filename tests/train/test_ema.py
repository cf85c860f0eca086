"""The average of the weights."""

from __future__ import annotations

import pytest
import torch

from threedgen.train.system import EMA


class Model(torch.nn.Module):
    """Names that would collide with those of a module, a buffer that counts, a half-precision weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.BatchNorm1d(3)
        self.decay = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.coarse = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))


def test_is_the_weighted_mean_of_all_weights_so_far():
    model = Model()
    ema = EMA(model, 0.5)
    for step, value in enumerate([3.0, 5.0, 9.0], start=100):  # past the warm-up
        model.decay.data.fill_(value)
        model.inner.num_batches_tracked += 1
        ema.update(model, step)
    first = torch.tensor([1.0, 2.0])
    wanted = 0.5**3 * first + 0.5**3 * 3 + 0.5**2 * 5 + 0.5 * 9
    assert torch.allclose(ema.weights()["decay"], wanted)
    assert ema.weights()["inner.num_batches_tracked"] == 3
    assert ema.weights().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "step, kept",
    [(0, 1 / 10), (1, 2 / 11), (8, 1 / 2), (89, 10 / 11), (8989, 8990 / 8999), (9000, 0.999), (10**6, 0.999)],
)
def test_the_first_steps_count_more(step: int, kept: float):
    """Of the average so far is kept (1 + step) / (10 + step), until that exceeds the decay."""
    model = Model()
    ema = EMA(model, 0.999)
    model.decay.data.fill_(1001.0)
    ema.update(model, step)
    wanted = torch.tensor([1.0, 2.0]) * kept + 1001 * (1 - kept)
    assert torch.allclose(ema.weights()["decay"], wanted, rtol=1e-5)


def test_small_changes_of_half_precision_weights_are_not_lost():
    model = Model()
    ema = EMA(model, 0.999)
    model.coarse.data.fill_(1.0078125)  # the next bfloat16 number
    for step in range(10_000, 10_100):
        ema.update(model, step)
    assert 1.0005 < float(ema.weights()["coarse"]) < 1.001


def test_is_saved_with_the_module_that_holds_it():
    holder = torch.nn.Module()
    holder.ema = EMA(Model(), 0.9)
    names = holder.state_dict()
    assert len(names) == len(Model().state_dict()) and all(name.startswith("ema./") for name in names)
    assert not list(holder.parameters())


def test_applied_for_a_while_and_taken_back_even_after_an_error():
    model = Model()
    ema = EMA(model, 0.9)
    model.decay.data.fill_(7.0)
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        assert model.decay.tolist() == [1.0, 2.0]
        raise RuntimeError("inside")
    assert model.decay.tolist() == [7.0, 7.0]


def test_decay_is_a_share():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EMA(Model(), 1.0)
