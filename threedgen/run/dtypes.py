"""In which number format a prior computes: by name, or by what the machine is fast at."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Finds the type of fp32, bf16, fp16, or auto: bf16 where the machine has instructions for it, else fp32.

    fp16 on a CPU is auto as well: it would be emulated, for minutes a step.
    """
    if told := instead(name, device):
        _say_once(told)
    return DTYPES[_usual(device) if told or name == "auto" else name]


def instead(name: str, device: torch.device) -> str:
    """Says in what is computed instead of a format that the device would emulate; "" for any other."""
    emulated = name == "fp16" and device.type == "cpu"
    return f"dtype {name} would be emulated on a CPU, so it computes in {_usual(device)}" if emulated else ""


def _usual(device: torch.device) -> str:
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bf16_cpu() and device.type == "cpu"
    return "bf16" if fast else "fp32"


@cache
def _say_once(told: str) -> None:
    """Warns once: a prior asks again when it moves."""
    logger.warning("%s", told)


def bf16_cpu() -> bool:
    """Has the CPU bf16 instructions? (Without them bf16 is emulated, slower than fp32.)"""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def mixed(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Gives bfloat16 autocast for training, where it is wanted and the machine has instructions for it."""
    dtype = compute_dtype("auto", device)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and dtype is torch.bfloat16)


def compact(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Stores the weights of matrix products and convolutions in the dtype in which autocast computes them: the same
    results from less memory. For networks that are neither trained nor saved."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
