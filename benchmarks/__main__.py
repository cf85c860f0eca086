"""Command line of the benchmarks: python -m benchmarks NAME ... [--out FILE] [key=value ...]."""

import argparse
import importlib
import inspect
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from threedgen.config.errors import ExpectedError

BENCHMARKS = {
    "here": "times that the documentation names, next to other machines: demo, quick run, step, export; minutes",
    "hashgrid": "hash grid: numba kernels against PyTorch",
    "gaussians": "rasterisation of 3D Gaussians: numba kernels against PyTorch",
    "step": "a generate step of the default config, against PyTorch versions without empty-space skipping",
    "mvdream": "a step of mvdream-sd21 and mvdream-sd21-shading with random weights, against plain PyTorch; for a GPU",
    "gpu": "everything that runs on a GPU, in at most six minutes: kernels, networks, steps, training loop, tests",
    "gpu_configs": "peak memory, kernel launches and waits of each config for a GPU, found without one; two minutes",
    "precision": "gradients of SDS in fp16 and bf16, against float32; minutes an object (--rounds)",
    "mvdiffusion": "a denoising step of MVDiffusion's panorama network with random weights, against the reference code",
    "mvadapter": "a training step of MV-Adapter on toybox-base, against full fine-tuning as in MVDream",
    "asset_views": "rendering of user assets by processes and on a Ray cluster, also with a killed node",
    "janus": "overhead of the Janus benchmark around jobs that only wait",
    "janus_objects": "fronts that the Janus meter finds on 60 objects with a known number of fronts; a minute",
    "whole_run": "whole run of quick-toybox: alone, and next to a process that keeps one core busy",
    "unseen": "colours of texels that no camera saw, against the true colours of toybox objects",
    "edits": "kept part of objects of quick-toybox that another prompt changes: Lab and outline differences; an hour",
    "export_shape": "normals and ground contact of toybox objects' meshes and levels of detail, against the truth",
    "studio": "the studio's server with 2, 20 and 200 clients at once: latency, memory, open files",
    "weights": "LoRAs and single files of sized-down Stable Diffusion 1.5, 2.1 and XL, against diffusers",
    "user_files": "contents of a folder of user files, --data FOLDER, as the readers return them",
    "round_trip": "exported assets, --run RUN, as trimesh, Blender and three.js read them",
    "export": "quality of exported assets of synthetic fields or runs, against acceptance limits",
}
"""Benchmark name -> description. The function `table` in benchmarks/NAME.py gets the options that its parameters name.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line. Invalid arguments end the process with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure speed, each figure next to a baseline from the same run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benchmarks:\n" + "\n".join(f"  {name:<15}{about}" for name, about in BENCHMARKS.items()),
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="NAME | key=value",
        help="benchmark, or option of the config that here, step, mvdream or whole_run measures, such as threads=2",
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every measurement (default 3)")
    parser.add_argument("--size", type=int, default=64, help="image or view size in pixels (default 64)")
    parser.add_argument("--seeds", type=int, default=5, help="number of synthetic fields per shape (export, default 5)")
    parser.add_argument("--grid", type=int, default=256, help="grid resolution (export, default 256)")
    parser.add_argument("--assets", type=int, default=64, help="number of meshes to render (asset_views, default 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each waiting job (janus, default 10)")
    parser.add_argument(
        "--reference", type=Path, help="clone of the MVDiffusion repository (mvdiffusion)", metavar="PATH"
    )
    parser.add_argument("--views", type=int, default=8, help="number of views of the panorama (mvdiffusion, default 8)")
    parser.add_argument("--steps", type=int, default=1, help="number of denoising steps (mvdiffusion, default 1)")
    parser.add_argument("--pairs", type=int, default=10, help="number of objects with an edit (edits, default 10)")
    widths = "channels of the UNet levels, multiples of 64 (mvdiffusion, default 320,640,1280,1280)"
    parser.add_argument("--widths", type=parse_ints, default=(320, 640, 1280, 1280), help=widths)
    device = "device (mvdiffusion, mvadapter, default cpu)"
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=device)
    runs = "run folder that provides the field (step), or run folders to export (export) or to read (round_trip)"
    parser.add_argument("--run", type=Path, nargs="+", help=runs, dest="runs", metavar="RUN")
    parser.add_argument("--minutes", type=float, default=6.0, help="time limit of all stages (gpu, default 6)")
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU, also if there is a GPU (gpu)")
    parser.add_argument(
        "--stages", type=lambda text: text.split(","), default=[], help="stages to run (gpu, default all)"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of files (user_files)", metavar="PATH")
    folder = "folder of the results (gpu, janus_objects, default outputs/benchmarks/NAME)"
    parser.add_argument("--folder", type=Path, help=folder, metavar="PATH")
    parser.add_argument("--out", type=Path, help="JSON file for the tables and a description of the machine")
    args = parser.parse_intermixed_args(argv)
    args.names = [word for word in args.words if "=" not in word]
    args.overrides = [word for word in args.words if "=" in word]
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown or not args.names:
        problem = f"unknown benchmark: {unknown[0]!r}" if unknown else "no benchmark given"
        parser.error(f"{problem}. Choose from: {', '.join(BENCHMARKS)}")
    limits = {
        "rounds": (1, None),
        "seeds": (1, None),
        "steps": (1, None),
        "assets": (1, None),
        "pairs": (1, 10),
        "size": (8, None),
    }
    for name, (low, high) in (limits | {"grid": (64, 512)}).items():
        if (value := getattr(args, name)) < low or (high is not None and value > high):
            parser.error(f"--{name} is {value}; it should be {f'{low} to {high}' if high else f'at least {low}'}")
    if not args.seconds > 0:
        parser.error(f"--seconds is {args.seconds:g}; it should be more than 0")
    return args


def parse_ints(text: str) -> tuple[int, ...]:
    """Parse comma-separated integers, such as "320,640"."""
    return tuple(int(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks, print their tables, write the JSON record if `--out` is set, and return exit code 0."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from threedgen.run.metrics import environment  # slow import, after the options are checked

    tables = []
    for name in args.names:
        measure = importlib.import_module(f"{__package__}.{name}").table
        options = vars(args) | {"folder": args.folder or Path("outputs/benchmarks", name)}
        tables.append(measure(**{option: options[option] for option in inspect.signature(measure).parameters}))
        print(tables[-1].text() + "\n", flush=True)
    if args.out is not None:
        record = {"options": args.overrides, "tables": [asdict(table) for table in tables], "machine": environment()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ExpectedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
