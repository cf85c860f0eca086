"""What a benchmark has to do: objects of all methods, prompts and seeds (``threedgen.systems.batch.jobs``)."""

from __future__ import annotations

from dataclasses import dataclass

from threedgen.config import ConfigError
from threedgen.evaluation.toybox.held_out import toybox_prompts, without_front
from threedgen.systems.batch.jobs import Job, check_prompts, job, object_config

from .options import JanusBenchmarkConfig

UNSEEN = {"export.enabled": False, "preview.enabled": False, "result.turntable.n_view": 8}
"""What would only cost time, for the mesh is what is looked at."""


@dataclass(frozen=True)
class Plan:
    """``refused``: methods that cannot run -> why. ``left_out``: prompts without a front -> why."""

    jobs: list[Job]
    prompts: list[str]
    refused: dict[str, str]
    left_out: dict[str, str]

    def notes(self) -> list[str]:
        """Words a sentence for each prompt and method that is left out."""
        prompts = [f"left out: {prompt!r}, for {why}" for prompt, why in self.left_out.items()]
        return prompts + [f"left out: {method} ({reason})" for method, reason in self.refused.items()]


def make_plan(config: JanusBenchmarkConfig) -> Plan:
    """Lists all jobs, seed by seed, and of a seed prompt by prompt: a table that is begun compares already.

    Raises ConfigError for a method that is none, for a prompt that names nothing, and if no prompt is left.
    """
    asked = list(config.prompts) or toybox_prompts(config.toybox, config.seed)
    frontless = without_front(asked)
    prompts = [prompt for prompt in asked if prompt not in frontless]
    if not prompts:
        nouns = ", ".join(sorted(set(frontless.values())))
        raise ConfigError(f"none of these things has a front ({nouns}); name some that do, such as a dog", "prompts")
    asked_by = config.overrides, prompts[0], "methods", "the benchmark", UNSEEN
    methods = {method: object_config(method, *asked_by) for method in config.methods}
    check_prompts(methods, prompts)
    refused: dict[str, str] = {}
    for method, base in methods.items():
        try:
            base.check()
        except ConfigError as error:
            refused[method] = str(error)
    jobs = [
        job(method, base, prompt, seed)
        for seed in config.seeds
        for prompt in prompts
        for method, base in methods.items()
        if method not in refused
    ]
    return Plan(jobs, prompts, refused, reasons(frontless))


def reasons(nouns: dict[str, str]) -> dict[str, str]:
    """Prompts without a front -> why they are left out, of their nouns."""
    return {prompt: f"a {noun} has no front" for prompt, noun in nouns.items()}
