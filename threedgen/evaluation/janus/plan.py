"""Plan of the Janus benchmark. A job (`threedgen.systems.batch.jobs`) makes one object with one method and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from threedgen.config import ConfigError, registry
from threedgen.systems.batch.jobs import Job, check_prompts, job, object_config

if TYPE_CHECKING:
    from threedgen.data.coloured_mesh import ColouredMesh

SKIPPED_PARTS = {"export.enabled": False, "preview.enabled": False, "result.turntable.n_view": 8}
"""Overrides of all methods. They skip outputs that the benchmark does not need, because it uses only the mesh."""


class FrontObjects(Protocol):
    """Source of objects with one clear front, registered as "front-objects"."""

    def prompts(self, count: int, seed: int) -> list[str]:
        """Return ``count`` prompts that no training uses. Raises ConfigError if there are not enough."""

    def without_front(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the prompts of objects without a front, such as a ball, mapped to the noun of the object."""

    def meshes(self, seed: int, first: int, count: int) -> Iterator[tuple[str, ColouredMesh]]:
        """Yield the prompt and the mesh of ``count`` objects, from number ``first`` on."""


def front_objects() -> FrontObjects:
    """Create the source of toybox objects with one clear front."""
    objects: FrontObjects = registry.implementation("front-objects", "toybox")()
    return objects


@dataclass(frozen=True)
class Plan:
    """Jobs of a Janus benchmark, and the prompts and methods that it leaves out.

    Attributes:
        jobs: one job per seed, prompt and method.
        prompts: prompts of the jobs.
        refused: maps each method that cannot run to the reason.
        left_out: maps each prompt of an object without a front to the reason.
    """

    jobs: list[Job]
    prompts: list[str]
    refused: dict[str, str]
    left_out: dict[str, str]

    def notes(self) -> list[str]:
        """Return one line of text for each prompt and each method that is left out, with the reason."""
        prompts = [f"left out: {prompt!r}, {reason}" for prompt, reason in self.left_out.items()]
        return prompts + [f"left out: {method} ({reason})" for method, reason in self.refused.items()]


def make_plan(methods: Sequence[str], overrides: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> Plan:
    """List all jobs, ordered by seed, then prompt, then method. An unfinished run can thus compare all methods.

    Args:
        methods: names of configs, each optionally followed by key=value overrides for this method.
        overrides: key=value overrides of all methods.

    Raises:
        ConfigError: if a config makes no 3D object, a prompt names an unknown object, or no prompt has a front.
    """
    left_out = reasons(front_objects().without_front(prompts))
    kept = [prompt for prompt in prompts if prompt not in left_out]
    if not kept:
        raise ConfigError("No object has a front. Name some that do, such as a dog.", "prompts", ", ".join(prompts))
    shared = overrides, kept[0], "methods", "the benchmark", SKIPPED_PARTS
    bases = {method: object_config(method, *shared) for method in methods}
    check_prompts(bases, kept)
    refused: dict[str, str] = {}
    for method, base in bases.items():
        try:
            base.check()
        except ConfigError as error:
            refused[method] = str(error)
    jobs = [
        job(method, base, prompt, seed)
        for seed in seeds
        for prompt in kept
        for method, base in bases.items()
        if method not in refused
    ]
    return Plan(jobs, kept, refused, left_out)


def reasons(nouns: dict[str, str]) -> dict[str, str]:
    """Map each prompt to the reason why it is left out. ``nouns`` maps prompts to nouns of objects without a front."""
    return {prompt: f"a {noun} has no front" for prompt, noun in nouns.items()}
