"""Stages of the GPU benchmark: versions, speed of the card, and the tests that need a GPU."""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import torch

from threedgen.config.optional import installed
from threedgen.run.metrics import environment

from .gpu import ROOT, end_process
from .gpu_stage import Bench

QUERY = "name,driver_version,memory.total,memory.used,clocks.max.sm,power.limit"


def machine(bench: Bench) -> None:
    """Record versions, properties of the card, memory bandwidth, and the speed of a matrix product per precision."""
    found = environment()
    versions = dict(found["versions"]) if isinstance(found["versions"], dict) else {}
    bench.record("versions", **versions, cuda=torch.version.cuda, triton=installed("triton"), cores=found["cores"])
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        bench.record(
            "nvidia-smi",
            **dict(
                zip(
                    QUERY.split(","),
                    subprocess.run(query, capture_output=True, text=True).stdout.strip().split(", "),
                    strict=False,
                )
            ),
        )
    if bench.device.type == "cuda":
        card = torch.cuda.get_device_properties(bench.device)
        bench.record(
            "card",
            name=card.name,
            capability=f"{card.major}.{card.minor}",
            gb=card.total_memory / 1e9,
            multiprocessors=card.multi_processor_count,
        )
    source = torch.zeros((1 << 20 if bench.small else 1 << 30), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    ms = bench.milliseconds(lambda: target.copy_(source))
    bench.record("copy", ms=ms, gb_per_s=2 * len(source) / ms / 1e6)
    size = 256 if bench.small else 8192
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        with bench.case(f"product {name}"):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
            ms = bench.milliseconds(lambda a=a, b=b: a @ b, 5)  # type: ignore[misc]
            bench.record(f"product {name}", ms=ms, tflops=2 * size**3 / ms / 1e9)


NO_TESTS = 5  # exit code of pytest if all tests of a file are left out
FILE_SECONDS = 60.0  # time limit of the tests of a file


def tests(bench: Bench) -> None:
    """Run the tests marked `gpu`, each file in its own process, because a process either compiles or interprets Triton.

    Tests that run other stages of this benchmark are left out. A file whose tests take too long is killed and failed.
    """
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    marked = sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text(encoding="utf-8"))
    for path in marked:
        name = path.relative_to(ROOT).as_posix()
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", "not stage", "-p", "no:cacheprovider", name]
        with tempfile.TemporaryFile() as output:  # not a pipe, which a grandchild could keep open
            process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT)
            try:
                passed, killed = process.wait(FILE_SECONDS) in (0, NO_TESTS), ""
            except subprocess.TimeoutExpired:
                end_process(process)
                passed, killed = False, f"killed after {FILE_SECONDS:.0f} s: "
            output.seek(0)
            lines = output.read().decode(errors="replace").strip()
        print(lines[-8000:], flush=True)
        last = (lines.splitlines() or ["no output"])[-1].strip("= ")
        bench.record(name, ok=passed, seconds=time.monotonic() - start, result=killed + last)
