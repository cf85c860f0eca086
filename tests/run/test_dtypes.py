"""Floating-point formats of a device."""

import pytest
import torch

from threedgen.run import dtypes


@pytest.mark.parametrize("fast", [True, False])
def test_compute_dtype_auto_is_bf16_only_with_native_instructions(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "bf16_cpu", lambda: fast)
    expected = torch.bfloat16 if fast else torch.float32
    assert dtypes.compute_dtype("auto", torch.device("cpu")) == expected
    assert dtypes.compute_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert dtypes.compute_dtype("fp16", torch.device("cuda")) == torch.float16
    with dtypes.autocast_bf16(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == fast
