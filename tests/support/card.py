"""A simulated GPU: tensors on the device "card" hold CPU data, so that code for a GPU runs without one.

Like a GPU, the device refuses to mix its tensors with CPU tensors; it also refuses float64, which is slow on most
GPUs. It counts kernel launches (operators that are not views), blocking copies and other synchronisations of the host.
The kernels of hash grid and ray marching count as one launch each. Needs a child of fork_server.py: a device is
registered for good.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import register_dataclass, tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

ROOT = Path(__file__).parents[2]
PRODUCT = tuple(f"{ROOT / name}/" for name in ("threedgen", "guidance", "representations"))
SYNCS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "repeat_interleave", "equal"}
SYNCS |= {"bincount"}
"""Operators after which the host knows a value or a size, so it waits for the GPU."""
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "_to_copy", "copy_"}
FREE |= {"_unsafe_view"}
"""Operators that launch no kernel, or that are counted as copies."""


class Card(Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "Card":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        where: dict[str, Any] = {"dtype": values.dtype, "device": torch.device("card", 0)}
        made = Tensor._make_wrapper_subclass(cls, values.size(), **where, **layout)  # type: ignore[attr-defined]
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return current[-1].__torch_dispatch__(func, types, args, kwargs)  # as in the backward pass


current: list["Simulation"] = []


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts; much faster than torch's function for all trees."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if type(value) is dict else value if type(value) in (tuple, list) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def replaced(value: Any, kind: type[Tensor], change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)([replaced(item, kind, change) for item in value])
    return {key: replaced(item, kind, change) for key, item in value.items()} if type(value) is dict else value


class Simulation(TorchDispatchMode):
    """Context in which the device works. `launches` and `syncs` count by operator and by place in the product."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.syncs = Counter[str](), Counter[str]()

    def __enter__(self) -> "Simulation":
        current.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        current.pop()

    def clear(self) -> None:
        self.launches.clear()
        self.syncs.clear()

    def sync(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(PRODUCT)]
        where = f"{Path(frames[-1].filename).relative_to(ROOT)} {frames[-1].name}" if frames else "library"
        self.syncs[f"{where}: {what}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.removeprefix("aten::")
        tensors = tensors_in((args, kwargs))
        on_card = any(isinstance(a, Card) for a in tensors)
        target = on_card
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"]).type == "card"
            kwargs["device"] = torch.device("cpu")
        host = [a for a in tensors if not isinstance(a, Card)]
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            target = isinstance(args[0], Card) if name == "copy_" else target
            if isinstance(source, Card) != target:
                blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
                if blocking or not target:
                    self.sync("copy to the GPU" if target else "copy to the host")
            if target or isinstance(source, Card):
                self.launches["copy"] += 1
        elif on_card:
            if any(a.dim() for a in host) and name not in ("index", "index_put", "index_put_"):
                raise RuntimeError(f"{name} mixes the GPU with a CPU tensor of shape {[tuple(a.shape) for a in host]}")
            if host and name.startswith("index") and any(a.dim() for a in host):
                self.sync(f"{name} with indices on the host")
            indices = tensors_in(args[1]) if name.startswith("index") else []
            masks = any(a.dtype in (torch.bool, torch.uint8) for a in indices)
            if name in SYNCS or masks:
                self.sync(name)
        if name in ("native_group_norm", "native_group_norm_backward") and on_card:  # CUDA's kernels want NCHW
            strided = [isinstance(a, Tensor) and a.dim() == 4 and not a.is_contiguous() for a in args]
            args = tuple(a.contiguous() if b else a for a, b in zip(args, strided, strict=True))
        if target and name not in FREE and not func.is_view:
            self.launches[name] += 1
        plain_args, plain_kwargs = replaced((args, kwargs), Card, lambda t: t.values)
        out = func(*plain_args, **plain_kwargs)
        if target and any(t.dtype == torch.float64 and t.dim() for t in tensors_in(out)):
            raise RuntimeError(f"{name} computes in float64 on the GPU")
        return self.wrapped(out, args, kwargs) if target else out

    def wrapped(self, out: Any, args: Any, kwargs: Any) -> Any:
        """Return the results as tensors of the device; a result that is an argument keeps its identity."""
        known = {id(a.values): a for a in tensors_in((args, kwargs)) if isinstance(a, Card)}
        return replaced(out, Tensor, lambda t: known[id(t)] if id(t) in known else Card(t))


class Backend(SimpleNamespace):
    amp = SimpleNamespace()

    def __getattr__(self, name: str) -> Any:
        answers = {"device_count": 1, "current_device": 0, "_is_in_bad_fork": False}
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: answers.get(name, True)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


HALF = ("linear", "conv2d", "matmul", "bmm", "baddbmm", "addmm", "mm")
SINGLE = ("group_norm", "layer_norm", "softmax.int", "pow.Tensor_Scalar", "sum", "exp", "norm.Scalar", "mse_loss")
"""Operators that autocast on CUDA computes in half and in single precision."""
library: list[Any] = []


def register() -> None:
    """Register the device, its autocast rules and its kernels."""
    _setup_privateuseone_for_python_backend("card", Backend())
    library.append(torch.library.Library("aten", "IMPL", "AutocastPrivateUse1"))
    library.append(torch.library.Library("_", "IMPL", "AutocastPrivateUse1"))
    library[1].fallback(torch.library.fallthrough_kernel)
    for names, half in ((HALF, True), (SINGLE, False)):
        for name in names:
            packet, _, overload = name.partition(".")
            library[0].impl(name, autocast_rule(getattr(getattr(torch.ops.aten, packet), overload or "default"), half))
    from threedgen.guidance import cuda_graph
    from threedgen.representations import backends, march
    from threedgen.representations.field import mlp
    from threedgen.representations.hashgrid import encoding
    from threedgen.run import dtypes, memory

    native = dtypes._native
    dtypes._native = lambda device: "bf16" if device.type == "card" else native(device)
    backends.DEVICE_TYPES["triton"] = "card"
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter keeps its attribute `values`
    memory.GPUS.add("card")
    torch.nn.functional.scaled_dot_product_attention = attention
    cuda_graph.record = record
    library.append(torch.library.Library("aten", "IMPL", "PrivateUse1"))
    library[2].impl("silu_backward", lambda *args: None)  # has a kernel of its own, and is not computed by others
    make = torch.tensor  # on a GPU a blocking copy; torch makes the tensor without asking the mode
    torch.tensor = lambda *args, device=None, **kwargs: make(*args, **kwargs).to(device or "cpu")
    Tensor.new_tensor = lambda self, data, dtype=None, device=None, **kwargs: make(  # type: ignore[method-assign]
        data, dtype=dtype or self.dtype, **kwargs
    ).to(device or self.device)
    Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign, assignment]
    tables = (encoding.MODULES, grid_kernels()), (mlp.MODULES, mlp_kernels()), (march.MODULES, march_kernels())
    for table, kernels in tables:
        sys.modules[kernels.__name__] = kernels
        table["triton"] = kernels.__name__  # type: ignore[index]


def record(function: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Record a function as a CUDA graph: a replay is one launch. As on a GPU, it must not wait for the device."""
    simulation = current[-1]

    def run() -> Tensor:
        launches, syncs = simulation.launches.copy(), simulation.syncs.copy()
        result = function()
        if simulation.syncs != syncs:
            raise RuntimeError(f"operation not permitted when stream is capturing: {simulation.syncs - syncs}")
        simulation.launches = launches
        return result

    def replay() -> None:
        output.values.copy_(run().values)  # type: ignore[attr-defined]
        simulation.launches["graph"] += 1

    output = run()
    return replay, output


def autocast_rule(operator: Any, half: bool) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Tensor) -> Tensor:
        eligible = value.device.type == "card" and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype("card") if half else torch.float32) if eligible else value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = replaced((args, kwargs), Tensor, cast)
            return operator(*args, **kwargs)

    return run


def kernel(name: str, function: Callable[..., Any], launches: int = 1) -> Callable[..., Any]:
    """Return a kernel of the device that runs `function` on CPU tensors."""

    def run(*args: Any) -> Any:
        assert all(isinstance(a, Card) for a in tree_leaves(args) if isinstance(a, Tensor) and a.dim()), name
        current[-1].launches[name] += launches
        with torch.utils._python_dispatch._disable_current_modes():
            out = function(*tree_map_only(Card, lambda t: t.values, args))
        return tree_map_only(Tensor, Card, out)

    return run


class Attention(torch.autograd.Function):
    """Attention as one launch forward and one backward, as the fused kernels of a GPU."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return kernel("attention", sdpa)(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        def gradients(*values: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [value.detach().requires_grad_() for value in values[:3]]
                return torch.autograd.grad(sdpa(*leaves), leaves, values[3])

        return kernel("attention backward", gradients)(*ctx.saved_tensors, grad)


sdpa = torch.nn.functional.scaled_dot_product_attention


def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    masked = kwargs.get("is_causal") or any(value is not None for value in (kwargs.get("attn_mask"), *args))
    if not isinstance(q, Card) or masked:
        return sdpa(q, k, v, *args, **kwargs)
    if torch.is_autocast_enabled("card"):
        q, k, v = (value.to(torch.get_autocast_dtype("card")) for value in (q, k, v))
    return Attention.apply(q, k, v)


def grid_kernels() -> ModuleType:
    from threedgen.representations.hashgrid import numba_kernels as numba

    module = ModuleType("card_grid")
    for name in ("encode", "scatter", "position_gradient"):
        setattr(module, name, kernel(f"grid {name}", getattr(numba, name)))
    return module


def mlp_kernels() -> ModuleType:
    def values(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return (x @ w.t()).relu() @ v.t()

    def gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            return torch.autograd.grad(values(*leaves), leaves, grad)

    module = ModuleType("card_mlp")
    module.mlp = kernel("mlp", values)  # type: ignore[attr-defined]
    module.mlp_gradients = kernel("mlp gradients", gradients, 3)  # type: ignore[attr-defined]
    return module


def march_kernels() -> ModuleType:
    from threedgen.representations.march import Samples, differentiable
    from threedgen.representations.march import numba_kernels as numba

    register_dataclass(Samples)  # `kernel` finds its tensors
    marched = kernel("march place", numba.place, 5)

    def place(*args: Any, total: int | None = None) -> Samples:
        if total is None:
            current[-1].sync("number of samples")
        return marched(*args)

    module: Any = ModuleType("card_march")
    module.place, module.visible = place, kernel("march visible", numba.visible)
    module.counts = kernel("march count", lambda *args: numba.place(*args).count)
    forward, backward = kernel("composite", numba.forward), kernel("composite backward", numba.backward)
    module.composite = differentiable(forward, backward)
    return module
