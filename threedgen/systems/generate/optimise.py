"""Second part of a generate run, after sampling views: optimise the object, then write all results of the run."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from threedgen.config import registry
from threedgen.export.run_field import field_view, load_field
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import turntable
from threedgen.guidance.prior import Prior
from threedgen.representations.base import Representation
from threedgen.run.disk import Tree, writing
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import ProgressDisplay
from threedgen.train.callbacks import FiniteGuard
from threedgen.train.loop import determinism, deterministic
from threedgen.train.status import Status
from threedgen.train.task import Task, device
from threedgen.viewer.live import LiveView
from threedgen.viewer.report import PAGE, write_report

from .outputs import write_results
from .scene import part_of
from .system import GenerateSystem
from .views import object_text

if TYPE_CHECKING:
    from threedgen.viewer.viser_window import ViserWindow


def optimise(
    task: Task,
    prior: Prior,
    text_embeddings: Tensor,
    views: Tensor | None,
    cameras: Cameras | None,
    notes: list[str],
    init_path: Path | None,
) -> Status:
    """Train the object, write the results, and return the final status of the training.

    Args:
        task: run of the task generate, with its config and folder.
        prior: diffusion model that guides the training.
        text_embeddings: (n, L, D) embeddings of n = 2 to 7 texts, with L rows of D numbers each, in this order: prompt;
            negative prompt; with the option `view_prompts`, prompts of the side, front, back and overhead view; if
            `config.empty_prompt` is True, the empty prompt.
        views: (V, H, W, 3) images in [0, 1] for the warm start, sampled by the prior; None: no warm start.
        cameras: V cameras of `views`; None: no warm start.
        notes: warnings for summary.json. The function appends its own warnings.
        init_path: run folder or point cloud file that initialises the object; None: start from a new object.
    """
    config, folder = task.config, task.folder
    build: type[GenerateSystem] = registry.implementation("system", config.system.name)
    system = build(config, prior, text_embeddings, views, cameras)
    if init_path is not None:
        with determinism(deterministic(config.trainer)):
            initialise_from(system, init_path)  # before a checkpoint of this run is loaded
    with ExitStack() as stack:
        watchers: list[LiveView] = []
        with Interrupts() as interrupts:
            if config.view.enabled:  # the window stays open until the results are written
                end = partial(setattr, task, "finish", True)
                live = LiveView(config.view, lambda: open_window(system), system.images, interrupts, end)
                watchers = [stack.enter_context(closing(live))]
            status = task.fit(system, ("opacity", "t"), watchers, interrupts)
        seconds, trained = system.seconds(), time.monotonic()
        failed = status is Status.FAILED
        if not (task.has_results(status) or failed and task.is_global_zero):
            return status
        with writing(folder):
            figures: Tree = {} if failed else write_results(system, folder, notes, task.quiet)
            if failed:
                callbacks = system.trainer.callbacks  # type: ignore[attr-defined]
                figures["reason"] = next(c.failure for c in callbacks if isinstance(c, FiniteGuard))
            seconds["export"] = time.monotonic() - trained
            asset = [figures["asset"]["file"]] if "asset" in figures else []  # a rerun writes a lost asset again
            task.summarise(
                status,
                steps=system.trainer.global_step,
                notes=notes,
                preset=None if task.config.preset == "auto" else task.config.preset,
                files=[*asset, *figures.pop("files", ()), PAGE],
                seconds_of={name: round(took, 2) for name, took in seconds.items()},
                **figures,
            )
            with ProgressDisplay("page", 1, task.quiet) as count:
                write_report(folder)  # last, since it shows the summary; a run without it is not finished
                count.add(1)
    return status


def initialise_from(system: GenerateSystem, folder: Path) -> None:
    """Initialise the object of `system` from an earlier run; `folder` is its run folder.

    For 3D Gaussians, `folder` may also be a point cloud file. An earlier run also initialises the background, if its
    tensors have equal shapes in both runs. With the option `edit` (change the object of the earlier run to fit a new
    prompt), `system.old_prompt_embedding` is set to the embedding of the earlier run's prompt. Raises ConfigError if
    the file cannot be read, or if the representation of the earlier run cannot initialise the one of this run.
    """
    system.from_nothing = False
    if folder.is_file():
        system.field.init_from_file(folder)
        return
    place = device(system.config.trainer.accelerator)  # where the back ends of both runs work
    system.field.to(place)
    config, field, occupancy, checkpoint = load_field(folder, place)
    if type(field).density is Representation.density and type(field) is not type(system.field):
        material = registry.build("material", config.material)
        view = field_view(field, occupancy, config.march, place, material=material)
        system.field.init_from_functions(view.density, view.colour)
    else:
        system.field.init_from(field)
    if system.config.edit is not None:
        system.old_prompt_embedding = object_text(folder, system.prior)
    stored, own = part_of(checkpoint["state_dict"], "background"), system.background.state_dict()
    if {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in stored.items()}:
        system.background.load_state_dict(stored)


def open_window(system: GenerateSystem) -> ViserWindow:
    from threedgen.viewer.viser_window import ViserWindow  # optional, see threedgen.config.optional

    config = system.config
    return ViserWindow(config.prompt, config.view.port, turntable(config.result.turntable, 1))
