"""Config models of the report page, the gallery and the live view. This module does not import torch."""

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError
from threedgen.config.optional import require
from threedgen.config.sections import TaskConfig
from threedgen.run.folder import ROOT, run_folder, user_path


class ReportConfig(TaskConfig):
    """Report page of a run, written again to the run's folder.

    Options of the task "report".
    """

    run: str = Field("", description="folder of a generate run")

    def check(self) -> None:
        run_folder(self.run, "run")
        super().check()


class GalleryConfig(TaskConfig):
    """Gallery page that lists many runs.

    Options of the task "gallery".
    """

    runs: str = Field(str(ROOT), description="folder searched recursively for generate runs")
    out: str | None = Field(None, description="output folder or .html file; null: gallery.html in `runs`")

    def check(self) -> None:
        if not user_path(self.runs, "runs").is_dir():
            raise ConfigError("should be a folder that contains runs", "runs", self.runs)
        super().check()


class ViewConfig(Config):
    """Options of the live view of a run in a browser. They do not change the result, so the run does not save them."""

    enabled: bool = Field(
        False, description='open the live view, same as the flag --view; needs pip install ".[viser]"'
    )
    port: int = Field(8080, ge=0, le=65_535, description="port on 127.0.0.1; 0 or a port in use: any free port")
    size: int = Field(192, ge=16, le=1024, description="height of the rendered images, pixels")
    share: float = Field(0.2, gt=0, lt=1, description="maximum fraction of the run time spent on rendering, in (0, 1)")

    def check(self) -> None:
        if self.enabled:
            require("viser", "--view", "leave it out")
