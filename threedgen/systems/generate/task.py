"""Task `generate`: runs a validated config and writes turntable, mesh and asset to a run folder."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threedgen.config import ConfigError, find, load, plugins, registry, task_of
from threedgen.config.command import command
from threedgen.config.errors import key_prefix
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.view_prompts import prompts
from threedgen.guidance.weights.files import sha256
from threedgen.representations import march
from threedgen.representations.backends import load as load_backend
from threedgen.representations.hashgrid import encoding
from threedgen.run import folder as runs
from threedgen.run.cache import cached_tensor, input_digest
from threedgen.run.folder import run_folder, stored_config
from threedgen.run.memory import explain_out_of_memory
from threedgen.run.metrics import read_summary
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.run.text import say
from threedgen.run.threads import set_threads, threads_of
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.status import Status
from threedgen.train.task import Stopped, Task, device, run_prepared

from .presets import choose_preset
from .result import FILES, Run, print_result
from .views import TEXT, first_view, object_text, sample_views, view_cameras

logger = logging.getLogger(__name__)


def generate(prompt: str, config: str | os.PathLike[str] = "mvdream-toybox", quiet: bool = False, **values: Any) -> Run:
    """Generate a 3D object from a prompt, and return the `Run` with its folder and status.

    `config` is the name or file path of a config, and `values` replace options of it, such as seed=3. `quiet`: show no
    progress. Users call this function as `threedgen.generate`. Raises ConfigError if the config is invalid or the run
    fails, and KeyboardInterrupt after Ctrl-C or SystemExit after SIGTERM, so that a loop over runs ends. A repeated
    call continues the run.
    """
    path = find(os.fspath(config))
    if (task := task_of(path)) != "generate":
        raise ConfigError(f"should be of the task generate (got {path.name}, which is of {task})", "config")
    if isinstance(values.get("out"), os.PathLike):
        values["out"] = os.fspath(values["out"])
    checked = load(path, values=values | {"prompt": prompt})
    checked.check()
    checked, resume = runs.open_run(checked, runs.config_name(path))
    folder = Path(str(checked.out))
    before, status = read_summary(folder), run_status(checked, resume, quiet)
    if status is Status.FAILED:
        raise ConfigError(f"{folder}: {read_summary(folder).get('reason', 'the run failed')}")
    if status is Status.INTERRUPTED and read_summary(folder) == before:  # it wrote no results
        raise KeyboardInterrupt
    if status is Status.TERMINATED:
        raise Stopped(status.exit_code)
    return Run(folder, status.value)


def run(config: GenerateConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task, print the paths of its results with the folder on the last line, and return the exit code.

    `resume`: run folder to resume; None: a new run. `quiet`: print only the folder, and show no progress.
    """
    status = run_status(config, resume, quiet)
    if status in (Status.FINISHED, Status.INTERRUPTED):
        print_result(Run(Path(str(config.out)), status.value), quiet)
    return 0 if status is Status.INTERRUPTED and config.checkpoint.finish else status.exit_code


def run_status(
    config: GenerateConfig, resume: Path | None = None, quiet: bool = False, init_path: Path | None = None
) -> Status:
    """Run the stages of the config and then the run itself, and return the final status.

    A stage is a run of its own, with its own config, that is done first, unless it is finished already. The object of a
    stage initialises the next stage, and that of the last stage initialises the run itself. If a stage does not finish,
    the run itself does not start, and the status is that of the stage.

    Args:
        quiet: print neither the names of weight files nor progress.
        resume: run folder to resume from its last checkpoint; None: a new run.
        init_path: run folder whose object initialises the run; None: the path in the option `start` or `edit` (at most
            one is set), else a new object. It has no effect if the config has stages.

    Raises:
        ConfigError: the prompt, the prior or the checkpoint cannot be used, or a file cannot be written.
    """
    config = choose_preset(config, torch.device(device(config.trainer.accelerator)), Path(str(config.out)))
    task = Task(config, resume, quiet, FILES)
    effect = "exports it with other options" if "asset" in read_summary(task.folder) else "writes the missing asset"
    hint = f"; {command('--config', 'export', f'run={task.folder}')} {effect}" if config.export.enabled else ""
    return run_prepared(lambda task: run_once(task, init_path), task, hint)


def run_once(task: Task, init_path: Path | None = None) -> Status:
    """Encode the prompt, sample views, train the object and write the results. Return the final status of the run.

    If the config has stages (earlier runs), they are run first, unless they are finished. The result of the last one
    initialises the object of this run, and `init_path` is ignored. Without stages, `init_path` is the run folder or
    point cloud file that initialises the object; None: the path in the option `edit` or `start`, else a new object.
    """
    config, folder, prompt = task.config, task.folder, task.config.object_text()
    if config.stages:
        init_path = run_stages(config, folder, task.quiet)
        set_threads(threads_of(config))
    elif init_path is None:
        init_path = config.start_path
    check_backends(config)
    import_plugin_parts(config)
    prior: Prior
    with explain_out_of_memory("the prior", "set prior.image_size, preview.enabled=false, or trainer.accelerator=cpu"):
        prior = task.load_prior(compact=True)
        notes = prompt_warnings(prompt, prior, config.prompt_notes(), config.used_word(prompt)) if prompt else []
        texts = prompts(prompt, config.negative_prompt, config.view_prompts)
        image = first_view(config, prior)
        if path := config.image or getattr(config.prior, "image", None):
            task.weights["image"] = sha256(Path(path).expanduser())  # a checkpoint belongs to one image
        inputs = input_digest([], task.weights, *plugins.code_hashes("prior", config.prior.name))
        text_embeddings = embeddings(config, prior, texts + [""] * config.empty_prompt, image, folder, inputs)
        views, cameras = sample_views(config, prior, text_embeddings, image, folder, task.quiet, inputs)
    if not config.round_steps:
        prior.free_text_encoder()
    from .optimise import optimise  # takes seconds to import, so the first views are written before

    return optimise(task, prior, text_embeddings, views, cameras, notes, init_path)


def run_stages(config: GenerateConfig, folder: Path, quiet: bool) -> Path | None:
    """Run the unfinished stages of a run; return the folder of the last stage.

    A stage is a run of its own before the main run, with config, checkpoints and results in folder/stages/NAME, so a
    stopped run resumes at its unfinished stage. A stage is not trained, even if the number of steps was increased or
    its folder was deleted, once a later stage or the main run has a checkpoint and so no longer needs the object of the
    stage. The result is None without stages, or if the folder of the last one was deleted. `quiet`: show no progress.
    Raises Stopped if a stage does not finish.
    """
    init_path = None
    places = [folder / "stages" / name for name in config.stages]
    for number, (name, place) in enumerate(zip(config.stages, places, strict=True)):
        stage = config.stage(name).model_copy(update={"out": str(place)})
        later = (*places[number + 1 :], folder)
        used = any(any((part / runs.CHECKPOINTS).glob("*.ckpt")) for part in later)
        if not used and not runs.finished(place, stage.trainer.max_steps):
            if not quiet:
                say(f"stage {name}: {place}")
            stage, resume = runs.open_run(stage, name)
            status = run_status(stage, resume, quiet, init_path)
            if status is not Status.FINISHED:
                raise Stopped(status.exit_code)
        init_path = place if not used or runs.finished(place) else None
    return init_path


def check_backends(config: GenerateConfig) -> None:
    """Raise ConfigError if a back end (kernels) of the field or the ray marcher does not load or run on the device."""
    target = torch.device(device(config.trainer.accelerator))
    field = config.field.volume
    section = "field" if field is config.field else "field.paint"
    grid = (f"{section}.encoding", getattr(field, "encoding", None), encoding.MODULES)
    kernels = getattr(registry.implementation("representation", config.field.name), "backends", {})  # or a function
    used = [("field", config.field, kernels)] if kernels else [grid]
    for key, options, modules in (*used, ("march", config.march, march.MODULES)):
        with key_prefix(key):
            load_backend(modules, getattr(options, "backend", "auto"), target)


def import_plugin_parts(config: GenerateConfig) -> None:
    """Import the parts of plug-ins that are first used after the work has started.

    An error in such a part, for example AttributeError for a misspelt name, then costs no time. Built-in parts are not
    imported, because they take seconds.
    """
    losses = {name for name in type(config.loss).model_fields if getattr(config.loss, name) != 0}
    sections = ("system", "distillation", "camera", "material", "background", "optimizer", "logger")
    used = {
        **{kind: [getattr(config, kind).name] for kind in sections},
        "regulariser": losses.intersection(registry.names("regulariser")),
        "metric": config.metrics,
        "exporter": config.result.exporters,
    }
    for kind, names in used.items():
        for name in names:
            if not registry.entry(kind, name).implementation.startswith("threedgen."):
                registry.implementation(kind, name)


def noise_prompt(run: Path) -> str:
    """Return the prompt that, with the seed, determines the noise from which the object code of a run is sampled.

    The object code is a vector of what the prompt leaves unspecified. `run` is the run folder. Usually the result is
    the run's own prompt. For a run with the option `edit`, which changes the object of an earlier run, it is the
    `noise_prompt` of the earlier run, so that an equal seed gives equal noise. If the folder of the earlier run is
    gone, it is the run's own prompt again.
    """
    config = stored_config(run) or {}
    if config.get("edit") is not None:
        with suppress(ConfigError):
            return noise_prompt(run_folder(config["edit"], "edit"))
    return " ".join((config.get("prompt") or "").split())


def embeddings(
    config: GenerateConfig, prior: Prior, texts: list[str], image: Tensor | None, folder: Path, inputs: str = ""
) -> Tensor:
    """Encode n texts, and return their embeddings (n, L, D). They are cached in `folder` for a resumed run.

    Some priors have object codes, vectors of what a text leaves unspecified. Then the last of the L rows of an
    embedding is the code. This row is zeros for the negative prompt and for further texts that are empty.

    The codes of the other texts are computed from `image`. Without it they are sampled, all from the same noise. The
    noise depends on the seed and on the prompt, so that objects of different prompts get different colours. With the
    option `edit`, which changes the object of an earlier run, the new object has to be similar. Sampling then starts,
    as img2img does, from the code of that run plus noise instead of from pure noise, and with that run's noise.

    Args:
        texts: prompt, negative prompt, and any further texts, such as prompts of the side or back view.
        image: first view of the object (1, H, W, 3) in [0, 1], from which the codes are computed; None: they are
            sampled.
        folder: run folder.
        inputs: hash of the prior and the image file; embeddings cached with another one are computed again.
    """
    near, named = None, texts[0]
    if config.edit is not None:
        edited = run_folder(config.edit, "edit")
        near, named = object_text(edited, prior), noise_prompt(edited)

    def with_code(text: Tensor) -> Tensor:
        if image is None:
            return prior.sample_code(text, generator(config.seed, 0, f"object: {named}"), near)
        latents = prior.encode_images(image, generator(config.seed, 0, "image"))
        c2w = view_cameras(config, 1, prior.image_size).c2w[None, :1]
        return prior.encode_code(text, latents[None], c2w, fit=True)

    def encode() -> Tensor:
        described = [k != 1 and (bool(text) or k == 0) for k, text in enumerate(texts)]
        parts = zip(prior.encode_prompt(texts).split(1), described, strict=True)
        return torch.cat([with_code(part) if yes else part for part, yes in parts])

    return cached_tensor(folder / TEXT, "text", (len(texts), *prior.text_shape), encode, inputs)
