from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from tests.support.tiny_prior import cpu, tiny_prior
from threedgen.guidance import cuda_graph
from threedgen.guidance.cuda_graph import GraphedCalls

calls: list[tuple[int, ...]] = []


def scaled(x: Tensor, shift: Tensor | None, factor: int) -> Tensor:
    calls.append(tuple(x.shape))
    return factor * x if shift is None else factor * x + shift


def record(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    output = function()
    return lambda: output.copy_(function()), output


def test_graph_gives_the_result_of_each_call_and_is_captured_again_for_other_shapes(monkeypatch) -> None:
    captured = list[tuple[int, ...]]()
    monkeypatch.setattr(cuda_graph, "record", lambda f, device: (captured.append(calls[-1]), record(f))[1])
    graphed, kept = GraphedCalls(), []
    for k, count in enumerate([2, 2, 3, 3, 3, 3, 3, 2, 2, 2, 3]):
        x, shift = torch.full((count,), float(k)), torch.arange(count) if k % 7 else None
        kept.append((graphed(scaled, x, shift, 3), 3 * x if shift is None else 3 * x + shift))
    assert all(torch.equal(result, expected) for result, expected in kept)  # also later: no result is overwritten
    assert captured == [(3,)]
    # interval score matching has several calls without guidance in a step, then one with twice the latents
    for count in [2, 2, 2] + [4, 4, 4, 8] * 3:
        assert torch.equal(graphed(scaled, torch.full((count,), 5.0), None, 3), torch.full((count,), 15.0))
    assert captured == [(3,), (2,), (4,)]


def test_graph_of_a_prior_is_captured_again_after_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = list[torch.device]()
    monkeypatch.setattr(cuda_graph, "record", lambda f, device: (captured.append(device), record(f))[1])
    prior = tiny_prior()
    images, prior.graph = [prior.sample("a red dog", None, 4, generator=cpu())], GraphedCalls()
    for count in (1, 1, 2):
        images.append(prior.sample("a red dog", None, 4, generator=cpu()))
        assert len(captured) == count and torch.equal(images[-1], images[0])
        if len(images) == 3:
            prior.to("cpu")


def test_failed_capture_falls_back_for_good(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "record", fail)
    graphed = GraphedCalls()
    assert all(graphed(scaled, torch.tensor(k), None, 2) == 2 * k for k in range(6))
    assert len(caplog.records) == 1 and "capturing" in caplog.text


def test_graph_is_captured_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current, used = ["cuda:0"], list[str]()

    @contextmanager
    def device(value: torch.device) -> Iterator[None]:
        current.append(str(value))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    for name in ("current_stream", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda: (used.append(current[-1]), MagicMock())[1])
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    graphed = GraphedCalls()
    for _ in range(3):
        graphed(scaled, torch.empty(2, device="meta"), None, 3)
    assert used == ["meta"] * 3
