"""Jobs of the benchmark: objects of all methods, prompts and seeds (`threedgen.systems.batch.jobs`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from threedgen.config import ConfigError, registry
from threedgen.systems.batch.jobs import Job, check_prompts, job, object_config

if TYPE_CHECKING:
    from threedgen.data.coloured_mesh import ColouredMesh

SKIPPED_PARTS = {"export.enabled": False, "preview.enabled": False, "result.turntable.n_view": 8}
"""Only the mesh is evaluated."""


class FrontObjects(Protocol):
    """Objects with one clear front, registered as "front-objects"."""

    def prompts(self, count: int, seed: int) -> list[str]:
        """Return prompts that are held out of training. Raises ConfigError for too many."""

    def without_front(self, prompts: Sequence[str]) -> dict[str, str]:
        """Map the prompts of objects that are known to have no front to their nouns."""

    def meshes(self, seed: int, first: int, count: int) -> Iterator[tuple[str, ColouredMesh]]:
        """Yield prompts and meshes of ``count`` objects, from number ``first`` on."""


def front_objects() -> FrontObjects:
    """Return the toybox's objects with one clear front."""
    objects: FrontObjects = registry.implementation("front-objects", "toybox")()
    return objects


@dataclass(frozen=True)
class Plan:
    """Jobs of a benchmark.

    Attributes:
        refused: methods that cannot run -> reason.
        left_out: prompts without a front -> reason.
    """

    jobs: list[Job]
    prompts: list[str]
    refused: dict[str, str]
    left_out: dict[str, str]

    def notes(self) -> list[str]:
        """Return a sentence for each prompt and method that is left out."""
        prompts = [f"left out: {prompt!r}, {reason}" for prompt, reason in self.left_out.items()]
        return prompts + [f"left out: {method} ({reason})" for method, reason in self.refused.items()]


def make_plan(methods: Sequence[str], overrides: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> Plan:
    """List all jobs by seed, then by prompt, so that an unfinished table compares all methods.

    Args:
        methods: configs, each optionally followed by its own key=value overrides.
        overrides: of all methods.

    Raises:
        ConfigError: for a config that makes no object, an unknown object in a prompt, and if no prompt is left.
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
    """Map prompts to the reasons why they are left out, from their nouns."""
    return {prompt: f"a {noun} has no front" for prompt, noun in nouns.items()}
