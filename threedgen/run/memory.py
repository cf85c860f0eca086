"""Measurement of free memory and of the memory of tensors and autograd graphs; settings of the CPU's allocator."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet, finalize

import psutil
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from threedgen.config.errors import OutOfMemory

BLOCK = 512  # torch's GPU allocator rounds the bytes of each tensor up to a multiple of this number
CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt parameters of glibc's malloc.h
MAX_REUSED_BLOCK, MAX_REUSED_HEAP = 256 << 20, 512 << 20
"""Maximum bytes of a freed block that malloc reuses, and of the freed memory that malloc keeps at the heap's top."""
LIBRARIES = 0.5e9  # resident bytes of a process on Linux after it has imported the libraries of a run


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a device.

    On a CUDA device this is the driver's free memory plus torch's cache; on "mps" the recommended maximum minus the
    memory in use. On a CPU it is the memory available without swapping, limited by the container (cgroup v2).
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    machine: int = psutil.virtual_memory().available
    container = _container()
    return machine if container is None else min(machine, container)


def process_bytes(device: torch.device) -> float:
    """Return the bytes of `device`'s memory that a process uses besides its tensors: about 1 GB for a CPU, else 0.

    They are a fixed estimate for the imported libraries and for freed memory that malloc keeps (`keep_freed_memory`).
    Added to the measured memory of tensors, they give the memory that a run on this device needs.
    """
    return LIBRARIES + MAX_REUSED_HEAP if device.type == "cpu" else 0.0


GPUS = {"cuda"}  # device types that get asynchronous copies from pinned memory, and frozen networks in half precision


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; if it is there already, the tensor itself.

    A copy from a CPU to a CUDA device is asynchronous: it uses pinned memory, and the call does not wait for it.
    """
    if device.type in GPUS and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def keep_freed_memory() -> None:
    """Make glibc's malloc reuse large freed blocks, which speeds up training on a CPU. No effect without glibc.

    By default malloc returns a freed block above 32 MB to the system. Mapping a new block for the next tensor then
    takes as long as a large matrix product.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_REUSED_BLOCK)
        mallopt(M_TRIM_THRESHOLD, MAX_REUSED_HEAP)


def require_memory(size: int, what: str) -> None:
    """Raise OutOfMemory if less than `size` bytes of CPU memory are free.

    `what` is the subject of the error message, such as a file name.
    """
    free = free_bytes(torch.device("cpu"))
    if size > free:
        raise OutOfMemory(f"{what} needs {size / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB are free")


@contextmanager
def explain_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Return a context that converts torch's OutOfMemoryError of a GPU to the project's error `OutOfMemory`.

    `what` is the subject of the error message, such as "the prior", and `remedy` is advice for the user.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemory(f"{what} takes more memory than the GPU has free: {remedy}") from None


def _container() -> int | None:
    # bytes below the memory limit of the container, where file cache counts as free; None without limit
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "detach", "_unsafe_view")
NO_KERNEL = {f"aten::{name}" for name in ALLOCATIONS}  # operators that only allocate memory or make a view


Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


def _layout(tensor: Tensor) -> Layout:
    return tensor.shape, tensor.stride(), tensor.dtype


class PeakMemory(TorchDispatchMode):
    """Context that measures the memory of the tensors that are created in it, such as those of a training step.

    Attributes:
        device: type of the measured device, such as "cuda"; tensors elsewhere do not count. "meta" measures code that
            runs on meta tensors, which have shapes but no values.
        live: bytes of all tensors that were created in the context and exist now, each rounded up to 512 bytes as by
            torch's GPU allocator.
        peak: largest value of `live` so far.
        launches: number of kernel launches: calls of torch operators with a result on the device. Operators that only
            allocate memory or make a view launch no kernel and do not count.
        times: number that a launch adds to `launches`, normally 1. To save time, a render of meta tensors runs one
            chunk of its rays in place of m equal ones. It sets `times` to m during this chunk, so that the launches of
            all m count.
    """

    times: ClassVar[int] = 1
    _shapes: ClassVar[dict[tuple[object, ...], tuple[list[Layout], TreeSpec]]] = {}

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = self.launches = 0
        PeakMemory.times = 1
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        result = self._result(func, args, kwargs if isinstance(kwargs, dict) else {})
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if isinstance(func, OpOverload) and not func.is_view and func._schema.name not in NO_KERNEL:
            self.launches += self.times * any(value.device.type == self.device for value in made)
        self.add(*made)
        return result

    def _result(self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        # inputs with the layouts of an earlier call give empty outputs with the layouts of that call, as torch's own
        # shape functions are slow
        leaves, form = tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        pure = isinstance(func, OpOverload) and not func._schema.is_mutable
        if func is torch.ops.aten._local_scalar_dense.default and inputs[0].is_meta:
            return 1  # a number that the host reads, such as a count of steps, is not known
        if not pure or self.device != "meta" or not all(t.is_meta and t.layout == torch.strided for t in inputs):
            return func(*args, **kwargs)
        key = func, form, *(_layout(v) if isinstance(v, Tensor) else (type(v), v) for v in leaves)
        if key not in self._shapes:
            result = func(*args, **kwargs)
            outputs, out_form = tree_flatten(result)
            shared = {t.untyped_storage()._cdata for t in inputs}
            new = [t for t in outputs if isinstance(t, Tensor) and t.is_meta]
            owners = {t.untyped_storage()._cdata for t in new}
            if len(new) == len(outputs) == len(owners) and not owners & shared:
                self._shapes[key] = [_layout(t) for t in new], out_form
            return result
        layouts, out_form = self._shapes[key]
        made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in layouts]
        return tree_unflatten(made, out_form)

    def add(self, *tensors: Tensor) -> None:
        """Count tensors that were created before this context, such as weights, as memory in use (attribute `live`).

        Tensors that are created in the context are counted without this call. Memory that several tensors share counts
        once, and no longer after it is freed.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
            if tensor.device.type == self.device and key not in self._sizes:
                self._sizes[key] = size
                self.live += size
                self.peak = max(self.peak, self.live)
                finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class _Saved:
    # tensor saved by an autograd graph; it lives as long as the graph
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # else a saved output and its graph would keep each other alive


def graph_bytes(make: Callable[[], object]) -> int:
    """Call `make` once, and return the bytes of the tensors that autograd keeps for a backward pass from its result.

    Memory that several tensors share counts once. Parameters that autograd keeps, such as the weights of a linear
    layer, count too. To measure the bytes per input without them, call this function for a small and a large batch of
    inputs: the difference of the results divided by that of the batch sizes.
    """
    alive: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        result = make()  # keeps the graph alive
        storages = {saved.tensor.untyped_storage()._cdata: saved.tensor.untyped_storage().nbytes() for saved in alive}
        del result
    return sum(storages.values())
