"""Config models of the pages (no torch here)."""

from __future__ import annotations

from pydantic import Field

from threedgen.errors import ConfigError, short
from threedgen.options import TaskConfig
from threedgen.runs import ROOT, run_folder, user_path


class ReportConfig(TaskConfig):
    """Make the report page of a run again, in the run's folder."""

    run: str = Field("", description="folder of a run of the task generate")

    def check(self) -> None:
        if not self.run.strip():
            raise ConfigError(f"run: is missing; say which, such as run={ROOT}/mvdream-toybox/a-blue-dog-0123abcd")
        run_folder(self.run, "run")
        super().check()


class GalleryConfig(TaskConfig):
    """Make one page over many runs."""

    runs: str = Field(str(ROOT), description="folder; runs of the task generate are looked for at any depth below it")
    out: str | None = Field(None, description="the page, a folder or an .html file; null: gallery.html in that folder")

    def check(self) -> None:
        if not user_path(self.runs, "runs").is_dir():
            raise ConfigError(f"runs: should be a folder with runs below it (got {short(self.runs)})")
        super().check()
