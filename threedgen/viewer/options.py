"""Config models of the pages and of the live view (no torch here)."""

from __future__ import annotations

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError
from threedgen.config.optional import require
from threedgen.config.sections import TaskConfig
from threedgen.run.folder import ROOT, run_folder, user_path


class ReportConfig(TaskConfig):
    """Make the report page of a run again, in the run's folder."""

    run: str = Field("", description="folder of a run of the task generate")

    def check(self) -> None:
        if not self.run.strip():
            raise ConfigError(f"is missing; say which, such as run={ROOT}/mvdream-toybox/a-blue-dog-0123abcd", "run")
        run_folder(self.run, "run")
        super().check()


class GalleryConfig(TaskConfig):
    """Make one page over many runs."""

    runs: str = Field(str(ROOT), description="folder; runs of the task generate are looked for at any depth below it")
    out: str | None = Field(None, description="the page, a folder or an .html file; null: gallery.html in that folder")

    def check(self) -> None:
        if not user_path(self.runs, "runs").is_dir():
            raise ConfigError("should be a folder with runs below it", "runs", self.runs)
        super().check()


LIVE = "live"
"""Folder of assets that were asked for in the live view, each in one named by its step."""


class ViewConfig(Config):
    """Watching a run in a browser while it optimises. It changes no result, so it is not kept with the run."""

    enabled: bool = Field(False, description="open it (the flag --view does so); needs the extra viser")
    port: int = Field(8080, ge=0, le=65_535, description="of 127.0.0.1; if it is taken, or 0, one that is free")
    size: int = Field(192, ge=16, le=1024, description="pixels of a picture from top to bottom")
    share: float = Field(0.2, gt=0, lt=1, description="most of the run's time that pictures may take, as a share")

    def check(self) -> None:
        if self.enabled:
            require("viser", "--view", "leave it out")
