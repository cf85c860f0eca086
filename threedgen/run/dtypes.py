"""In which number format a prior computes: by name, or by what the machine is fast at."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """fp32, bf16, fp16, or auto: bf16 where the machine has instructions for it, else fp32.

    fp16 on a CPU is auto as well: it would be emulated, for minutes a step.
    """
    emulated = name == "fp16" and device.type == "cpu"
    if name != "auto" and not emulated:
        return DTYPES[name]
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bf16_cpu() and device.type == "cpu"
    dtype = torch.bfloat16 if fast else torch.float32
    if emulated:
        _say_instead(name, next(known for known in DTYPES if DTYPES[known] is dtype))
    return dtype


@cache
def _say_instead(asked: str, taken: str) -> None:
    """Once: a prior asks again when it moves."""
    logger.warning("dtype %s would be emulated on a CPU, so it computes in %s", asked, taken)


def bf16_cpu() -> bool:
    """Has the CPU bf16 instructions? (Without them bf16 is emulated, slower than fp32.)"""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def mixed(device: torch.device, wanted: bool = True) -> torch.autocast:
    """bfloat16 autocast for training, where it is wanted and the machine has instructions for it."""
    dtype = compute_dtype("auto", device)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and dtype is torch.bfloat16)


def compact(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Stores the weights of matrix products and convolutions in the dtype in which autocast computes them: the same
    results from less memory. For networks that are neither trained nor saved."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
