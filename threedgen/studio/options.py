"""Config model of the studio. This module does not import torch."""

from typing import Any

from pydantic import Field

from threedgen.config.errors import ConfigError
from threedgen.config.sections import TaskConfig
from threedgen.run.folder import ROOT, user_path


class StudioConfig(TaskConfig):
    """Open a browser page on 127.0.0.1 that generates objects from prompts, one run at a time."""

    config: str = Field("quick-toybox", description="config of the runs, optionally followed by key=value overrides")
    overrides: tuple[str, ...] = Field((), description="further key=value overrides of that config")
    out: str = Field(str(ROOT / "studio"), description="folder of the runs; existing runs in it are listed")
    port: int = Field(8090, ge=0, le=65_535, description="port on 127.0.0.1; 0 or a port in use: any free port")
    open_browser: bool = Field(False, description="open the page in the default browser")

    def run_config(self, prompt: str, **values: object) -> Any:
        """Return the config of the run for a prompt. `values` override keys that it has. Raises ConfigError."""
        from threedgen.systems.batch.jobs import object_config

        return object_config(self.config, self.overrides, prompt, "config", "the studio", values)

    def check(self) -> None:
        folder = user_path(self.out, "out")
        if folder.exists() and not folder.is_dir():
            raise ConfigError("should be a folder, but is a file", "out", self.out)
        self.run_config("a red car", prompt_check="off").check()
        super().check()
