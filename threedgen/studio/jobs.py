"""Jobs of the studio: the command lines that make an object or export it again, with their state."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from threedgen.config import load, plain, plugins, split_override
from threedgen.config.errors import ConfigError
from threedgen.export.options import AssetConfig
from threedgen.run.disk import Tree
from threedgen.run.folder import finished
from threedgen.systems.batch.jobs import job as run_job
from threedgen.systems.batch.jobs import run_key, words_of
from threedgen.viewer.record import read_record

from .options import StudioConfig

WAITING, RUNNING, STOPPING, FINISHING = "waiting", "running", "stopping", "finishing"
FINISHED, CANCELLED, FAILED = "finished", "cancelled", "failed"
LIVE = (RUNNING, STOPPING, FINISHING)
CONFIG_OF = {"mesh": "texture-toybox", "edit": "edit-toybox", "image": "threedim-toybox"}
"""Dict from the input of a run, a mesh to texture, an earlier run to edit or an image of an object, to its config."""


@dataclass
class Job:
    """Entry of the queue: command line of a run or an export, its state and its progress.

    The states are "waiting", "running", "stopping" (to be cancelled), "finishing" (exports its object early), and for
    ended jobs "finished", "cancelled" and "failed".
    """

    prompt: str
    seed: int
    name: str  # path of the folder of the run, relative to the studio's folder of runs
    command: list[str]
    number: int = 0  # identifies the job in requests; not reused after a restart
    state: str = WAITING
    progress: Mapping[str, str] = field(default_factory=dict)  # groups of job_queue.PROGRESS in the last line
    error: str = ""
    finish: bool = False  # whether to stop the optimisation and export the object in its current state
    task: str = "generate"  # task of the command; "export" for a further export of a finished run
    has_result: bool | None = None  # whether the run of an ended job has a result; None: not read yet


def make_job(
    config: StudioConfig,
    root: Path,
    prompt: str,
    seed: int = 0,
    export: AssetConfig | None = None,
    files: Mapping[str, Path] | None = None,
) -> Job:
    """Return the job that makes an object from a prompt, an uploaded file or another run.

    The job has the state "finished" if the folder `root` already has a finished run of the same request. Raises
    ConfigError if the prompt, an option or a file is invalid.

    Args:
        config: options of the studio, with the config of its runs.
        root: folder of the runs.
        prompt: text; may be empty if `files` has an image.
        seed: seed of the run.
        export: options of the asset. Options that are not set are taken from the config. If `files` has a mesh, no
            option may be set.
        files: {"image": path} to make an object from an image, {"mesh": path} to texture a mesh, {"edit": folder} to
            change the object of a run to fit the prompt.
    """
    files = files or {}
    given: Tree = {key: str(path) for key, path in files.items()}
    method = next((name for key, name in CONFIG_OF.items() if key in files), config.config)
    name, *own = words_of(method)
    options = {f"export.{option}": value for option, value in sorted((export.own_options() if export else {}).items())}
    if "mesh" in files and options:
        problem = "has no effect on a mesh that gets a texture: its shape, size and format stay. Leave it out"
        raise ConfigError(problem, next(iter(options)))
    given |= options
    # options of the request replace those of the studio
    own = [text for text in (*config.overrides, *own) if ".".join(split_override(text)[0]) not in given]
    if files:
        own = [text for text in own if text.startswith("export.") and "mesh" not in files]
        values = given | {"seed": seed} | ({} if name == CONFIG_OF["image"] else {"prompt": prompt})
        run = load(name, own, values)
        stem = prompt or next(iter(files.values())).stem
        key = run_key(Path(name).stem, stem, seed, run)
    else:
        values = {"prompt": prompt, "seed": seed}
        studio = config.model_copy(update={"config": name, "overrides": tuple(own)})
        run = studio.run_config(prompt, seed=seed, **given)
        key = run_job(method, run, prompt, seed).key
        values |= given
    run.check()
    words = [*own, *(f"{path}={_text(value)}" for path, value in values.items()), f"out={root / key}"]
    job = Job(prompt, seed, key, [*_command(name), *words], task=run.task)
    if finished(root / key, run.trainer.max_steps if hasattr(run, "trainer") else None):
        job.state = FINISHED
    return job


def export_job(root: Path, name: str, options: AssetConfig) -> Job:
    """Return the job that exports the asset of the run root/name again, with other options.

    Raises ConfigError if an option is invalid, or if there is no run in this folder.
    """
    folder = root / name
    values = {"run": str(folder)} | {key: plain(options)[key] for key in sorted(options.model_fields_set)}
    load("export", values=values).check()
    record = read_record(folder)
    words = [f"{key}={_text(value)}" for key, value in values.items()]
    return Job(record.prompt, int(record.option("seed") or 0), name, [*_command("export"), *words], task="export")


def _command(config: str) -> list[str]:
    return [sys.executable, "-m", "threedgen", *plugins.command_words(), "--config", config]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
