"""Cumulative sums where torch refuses its own (`trainer.deterministic=true` on CUDA)."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from threedgen.representations import losses, scan
from threedgen.representations.march import pack, torch_twin
from threedgen.representations.scan import sum_of_shifts


class RefuseCumsum(TorchFunctionMode):
    """Raise for a floating-point cumsum, as CUDA does with deterministic algorithms."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cumsum and args[0].is_floating_point():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (5, 16), (3, 9)])
def test_sum_of_shifts_equals_cumsum(shape: tuple[int, ...]) -> None:
    values = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for dim in range(len(shape)):
        weights = torch.rand(shape, dtype=torch.float64)
        results = [function(values, dim) for function in (sum_of_shifts, torch.cumsum)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad((r * weights).sum(), values)[0] for r in results))


def test_twin_and_distortion_need_no_cumsum(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    index = torch.arange(20).repeat_interleave(torch.randint(1, 9, (20,), generator=rng))
    t = torch.rand(len(index), generator=rng)
    samples = pack(index, t, t + 0.1, 20)
    sigma = torch.rand(len(index), generator=rng)

    def results() -> list[torch.Tensor]:
        result = torch_twin.composite(sigma, sigma[:, None], samples)
        intervals = (samples.t_start, samples.t_end, samples.ray_index, samples.start)
        return [*result, losses.distortion(result.weights, *intervals)]

    expected = results()
    monkeypatch.setattr(scan, "refuses_cumsum", lambda device: True)
    with RefuseCumsum():
        torch.testing.assert_close(results(), expected)
