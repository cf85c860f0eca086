"""Config model of the task "batch". The module does not import torch."""

import json
from contextlib import suppress
from typing import ClassVar

from pydantic import Field

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_text
from threedgen.export.options import AssetConfig
from threedgen.export.palette import Palette
from threedgen.run.folder import user_path
from threedgen.run.options import Names, Seeds, WorkersConfig


class BatchConfig(WorkersConfig):
    """Creation of one object for each combination of prompt, config and seed, with a gallery page.

    Options of the task "batch".
    """

    shares_default_folder: ClassVar[bool] = True
    changeable_on_resume: ClassVar[tuple[str, ...]] = ("seeds", "configs", "atlas", "strict")  # runs are found by key

    prompts: str = Field("", description="text file with one prompt per line; # starts a comment")
    configs: Names = Field(("mvdream-toybox",), min_length=1, description="configs, with key=value changes")
    seeds: Seeds = Field((0,), min_length=1, description="seeds for each prompt and config")
    overrides: tuple[str, ...] = Field((), description="key=value changes of all configs")
    style: Palette = Field(
        None, examples=["#e8d5b0,brown,green"], description="palette of all assets: colours or image"
    )
    atlas: bool = Field(False, description="write all assets as one GLB with one texture atlas, set.glb")
    strict: bool = Field(False, description="stop at a prompt without known nouns; off: skip it, report it at the end")

    def lines(self) -> list[str]:
        """Read the prompt file and return its prompts: its distinct lines in order, without comments (#).

        Raises ConfigError if the file is missing, unreadable, JSON, or has no prompts.
        """
        if not self.prompts.strip():
            raise ConfigError("is missing; give a file, such as prompts=prompts.txt", "prompts")
        text = read_text(user_path(self.prompts, "prompts"), "prompts").removeprefix("\ufeff")
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(text), (dict, list)):  # its lines would be prompts
                problem = "is a JSON file. Give a text file with one prompt per line"
                raise ConfigError(problem, "prompts", self.prompts)
        lines = text.splitlines()
        found = dict.fromkeys(" ".join(line.split()) for line in lines if line.strip() and line.lstrip()[0] != "#")
        if not found:
            raise ConfigError("should have a prompt in each line, and is empty", "prompts", self.prompts)
        return list(found)

    def notes(self) -> list[str]:
        from .jobs import plan, unknown_objects

        jobs = plan(self)
        unknown = unknown_objects({job.method: job.config for job in jobs}, self.lines())
        known = [job for job in jobs if (job.method, job.prompt) not in unknown]
        found = [f"makes {len(known)} of {len(jobs)} objects"]
        found += [f"skipped: {short(prompt)}: {reason}" for (_, prompt), reason in unknown.items()]
        for job in known[: len(known) // len(self.seeds)]:  # jobs are ordered by seed
            found += [f"{short(job.prompt)}: {note}" for note in job.config.notes()]
        return [*super().notes(), *dict.fromkeys(found)]

    def check(self) -> None:
        from .jobs import check_prompts, plan, unknown_objects

        super().check()
        jobs, prompts = plan(self), self.lines()
        methods = {job.method: job.config for job in jobs}
        unknown = unknown_objects(methods, prompts)
        known = {job.method: job.config for job in jobs if (job.method, job.prompt) not in unknown}
        if self.strict or not known:
            check_prompts(methods, prompts)
        for method, config in known.items():
            export: AssetConfig | None = getattr(config, "export", None)
            exports = export is not None and getattr(export, "enabled", True)
            glb = export is not None and "glb" in export.formats
            for key, possible in (("style", exports), ("atlas", exports and glb)):
                if getattr(self, key) and not possible:
                    setting = "overrides=[export.enabled=true]" if not exports else 'overrides=["export.formats=[glb]"]'
                    value = getattr(self, key)
                    raise ConfigError(f"needs assets, but {method} writes none. Set {setting}", key, value)
            config.check()
