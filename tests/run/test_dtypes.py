"""The precision that a device computes in."""

from __future__ import annotations

import pytest
import torch

from threedgen.run import dtypes


@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_bf16_only_where_it_is_fast(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "bf16_cpu", lambda: fast)
    expected = torch.bfloat16 if fast else torch.float32
    assert dtypes.compute_dtype("auto", torch.device("cpu")) == expected
    assert dtypes.compute_dtype("bf16", torch.device("cpu")) == torch.bfloat16, "as it was asked for"
    assert dtypes.compute_dtype("fp16", torch.device("cuda")) == torch.float16
    for wanted in (True, False):
        with dtypes.mixed(torch.device("cpu"), wanted):
            assert torch.is_autocast_enabled("cpu") == (wanted and fast)
