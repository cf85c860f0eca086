"""Triton's kernels outside of the interpreter, in a process of their own.

python triton_check.py compile 80 90    to machine code for GPUs of these compute capabilities; none is needed
python triton_check.py compare          run on the GPU, against the torch twins in float64
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.gpu_kernels import compare
from threedgen.representations.field import mlp_kernels as mlp
from threedgen.representations.hashgrid import triton_kernels as grid
from threedgen.representations.march import triton_kernels as march


def compile_all(capability: int) -> None:
    """Print for each kernel: capability, name, registers, bytes of spilled registers, bytes of shared memory."""
    f, i, big = "*fp32", "*i32", "*i64"
    shape, wide, cells = {"F": 2, "PAIRS": 2}, {"C": 6, "WIDE": 8}, {"SIZE": 32}
    network = mlp.compile_time_arguments(torch.empty(64, 32), torch.empty(3, 64))
    rays, marched = [big, big], [f] * 3 + ["*u8", i, "fp32", "fp32"]
    cases = [
        *((grid._encode, [f, f, f, f, f, i, "i32"], shape | {"ALONG": along}, {}) for along in (True, False)),
        *(
            (grid._scatter, [f, f, f, f, f, i, "i32"], {"F": 3, "PAIRS": 4, "ALONG": along}, {})
            for along in (True, False)
        ),
        (grid._position_gradient, [f, f, f, f, f, i, "i32", "i32"], shape, {}),
        (mlp._forward, [*[f] * 4, *["i32"] * 3], network, mlp.WARPS),
        (mlp._backward, [*[f] * 7, *["i32"] * 6], network, mlp.WARPS),
        (march._count, [*marched, big], cells, march.ONE_WARP),
        (march._fill, [*marched, big, big, f, f], cells, march.ONE_WARP),
        (march._forward, [f] * 4 + rays + [f] * 3, wide, march.ONE_WARP),
        (march._backward, [f] * 6 + rays + [f] * 4, wide, march.ONE_WARP),
        (march._visible, [f] * 3 + rays + ["fp32", "fp32", "*u8"], {}, march.ONE_WARP),
    ]
    for kernel, types, constants, options in cases:
        given = iter(types)
        signature = {name: "constexpr" if name in constants else next(given) for name in kernel.arg_names}
        source = triton.compiler.ASTSource(kernel, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        usage = resources(made.asm["cubin"])
        local = usage["STACK"] + usage["LOCAL"]
        print(capability, kernel.fn.__name__, usage["REG"], local, max(usage["SHARED"], made.metadata.shared))


def resources(cubin: bytes) -> dict[str, int]:
    """Return the registers (REG) and bytes (STACK, LOCAL, SHARED) that a thread or, for SHARED, a block of it uses."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        text = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        for word in sys.argv[2:]:
            compile_all(int(word))
    else:
        for case, ok, error, twin in compare("triton", torch.device("cuda"), 5000):
            print(case.replace(" ", "-"), error, twin)
            assert ok, case
