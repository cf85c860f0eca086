"""Choice of the floating-point format of computations, from an option or from the hardware."""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for the name "fp32", "bf16", "fp16" or "auto".

    "auto" is bf16 if the device has instructions for it, else fp32. "fp16" on a CPU is treated as "auto", because
    emulation would take minutes per step.
    """
    if note := emulation_note(name, device):
        _warn_once(note)
    return DTYPES[_native(device) if note or name == "auto" else name]


def emulation_note(name: str, device: torch.device) -> str:
    """Return a warning if `compute_dtype` replaces the dtype `name`, because the device only emulates it; else ""."""
    emulated = name == "fp16" and device.type == "cpu"
    return f"dtype {name} would be emulated on a CPU, so it computes in {_native(device)}" if emulated else ""


def _native(device: torch.device) -> str:
    if device.type == "cuda":  # torch.cuda.is_bf16_supported is also True for older GPUs, which emulate bf16
        fast = torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = bf16_cpu() and device.type == "cpu"
    return "bf16" if fast else "fp32"


@cache
def _warn_once(note: str) -> None:
    logger.warning("%s", note)


def bf16_cpu() -> bool:
    """Return whether the CPU has bf16 instructions; without them bf16 is slower than fp32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the type of `device`, such as "cuda".

    On "meta", where tensors have shapes but no values, the context has no effect.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def autocast_bf16(device: torch.device) -> torch.autocast:
    """Return a bfloat16 autocast context. The context has no effect if the device has no bf16 instructions."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype("auto", device) is torch.bfloat16)


def cast_weights(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters of the linear and 2D convolution layers of a network to `dtype`, in place.

    `dtype` should be the autocast dtype under which the network runs. A 16-bit dtype saves memory. Use the
    function only for inference.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
