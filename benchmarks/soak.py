"""Measure whether memory, file descriptors, threads and CPU time grow over the steps of a run or the jobs of a studio.

python -m benchmarks.soak [STEPS [JOBS [key=value ...]]]    default 20000 300; key=value: options of the run
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil  # type: ignore[import-untyped]
from scipy import stats

from threedgen.places import folder
from threedgen.run.metrics import read_metrics
from threedgen.testing import tiny_prior

from .table import Row, Table

SMALLEST = [
    "prompt=a red dog", "threads=1", "prior.dtype=fp32", "size=8", "scenes_per_step=1", "camera.n_view=2",
    "march.samples=4", "field.encoding.n_levels=2", "field.encoding.log2_hashmap_size=8",
    "field.encoding.base_resolution=4", "field.width=8", "occupancy.resolution=8", "refine.strengths=[]",
    "export.enabled=false", "result.turntable.n_view=2", "result.turntable.height=16", "result.turntable.width=16",
    "result.mesh_resolution=16", "trainer.accelerator=cpu", "trainer.log_every_n_steps=100", "checkpoint.seconds=3600",
]  # fmt: skip
"""Options of mvdream-toybox for the cheapest possible step."""
POLL_SECONDS = 1.0
SCRIPT = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "config.yaml").write_text("task: generate\\nprompt: a red dog\\n" + "# \\n" * 100)
(folder / "summary.json").write_text('{"status": "finished", "steps": 1}')
print("train: 1/1", file=sys.stderr)
"""
"""Script of a studio job: it only writes the files that the studio's page reads."""
Sample = dict[str, float]


def table(steps: int = 20_000, jobs: int = 300, overrides: Sequence[str] = ()) -> Table:
    """Return a row for each quantity of a run of `steps` steps, and of a studio that runs `jobs` jobs.

    With 0 steps or 0 jobs, this part is left out. `overrides` are changes of the config of the run.
    """
    rows = trends("run, per 1,000 steps", run_samples(steps, overrides), 1000) if steps else []
    rows += trends("studio, per 100 jobs", studio_samples(jobs), 100) if jobs else []
    return Table("Trends over a long run and many jobs", rows, ["Slopes with 95 % intervals, without the first fifth."])


def use(process: psutil.Process) -> Sample:
    with process.oneshot():
        return {
            "memory, MiB": process.memory_info().rss / 2**20,
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
            "CPU, s": sum(process.cpu_times()[:2]),
        }


def run_samples(steps: int, overrides: Sequence[str]) -> list[Sample]:
    """Run `steps` small steps in a process, and return samples of its resource use over time.

    A sample is a dict from quantity to number; its key "at" has the step. `overrides` are key=value changes of the run.
    """
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as temporary:
        tiny_prior().save(Path(temporary, "prior"))
        words = [*SMALLEST, f"prior.weights={temporary}/prior", f"out={temporary}/run", f"trainer.max_steps={steps}"]
        script = folder("configs").parent / "launch.py"
        process = subprocess.Popen([sys.executable, script, "--quiet", *words, *overrides], stdout=subprocess.DEVNULL)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if rows := read_metrics(Path(temporary, "run")):
                if not samples or rows[-1]["step"] > samples[-1]["at"]:
                    samples.append({"at": rows[-1]["step"], **use(watched)})
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
    return samples


def studio_samples(jobs: int) -> list[Sample]:
    """Submit jobs to a studio in this process one by one, and return the resource use of the process after each.

    The key "at" of a sample is the number of the job.
    """
    from threedgen.studio import state
    from threedgen.studio.job_queue import Queue
    from threedgen.studio.jobs import Job
    from threedgen.studio.options import StudioConfig
    from threedgen.studio.server import Server

    def small_job(config: object, root: Path, prompt: str, seed: int, *more: object) -> Job:
        return Job(prompt, seed, f"run-{seed}", [sys.executable, "-c", SCRIPT, str(root / f"run-{seed}")])

    samples, this = list[Sample](), psutil.Process()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        stack.enter_context(patch.object(state, "make_job", small_job))
        queue = Queue(Path(temporary))
        stack.callback(queue.close)
        url = stack.enter_context(Server(StudioConfig(task="studio", port=0), Path(temporary), queue)).url
        for number in range(jobs):
            body = json.dumps({"prompt": "a red dog", "seed": number}).encode()
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(f"{url}api/v1/jobs", body, headers)).close()
            while queue.runs_version <= number:
                time.sleep(0.01)
            start = time.process_time()
            urllib.request.urlopen(f"{url}api/v1/jobs").close()
            samples.append({"at": number, **use(this), "CPU of a request, ms": 1000 * (time.process_time() - start)})
    return samples


def trends(name: str, samples: list[Sample], unit: int) -> list[Row]:
    """Return a row for each quantity with its mean and its slope per `unit` steps or jobs.

    The slope is a linear regression over 20 means of consecutive samples, without the first fifth of the samples.
    `name` is the text of the column "of".
    """
    parts = np.array_split(np.arange(len(samples) // 5, len(samples)), 20)
    at = np.array([np.mean([samples[k]["at"] for k in part]) for part in parts])
    rows: list[Row] = []
    for key in list(samples[0])[1:]:
        values = np.array([np.mean([samples[k][key] for k in part]) for part in parts])
        label, places = key, at
        if key == "CPU, s":  # a sum
            label, values, places = "CPU per unit, s", np.diff(values) / np.diff(at) * unit, at[1:]
        fit = stats.linregress(places, values)
        half = stats.t.ppf(0.975, len(places) - 2) * fit.stderr * unit
        slope = f"{fit.slope * unit:+.4f} [{fit.slope * unit - half:+.4f}, {fit.slope * unit + half:+.4f}]"
        rows.append(
            {"of": name, "quantity": label, "samples": len(samples), "mean": float(values.mean()), "slope": slope}
        )
    return rows


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    print(table(*numbers, overrides=[word for word in sys.argv[1:] if "=" in word]).text())
