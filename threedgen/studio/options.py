"""Config model of the studio (no torch here)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from threedgen.config.errors import ConfigError
from threedgen.config.sections import TaskConfig
from threedgen.run.folder import ROOT, user_path


class StudioConfig(TaskConfig):
    """A page in a browser on which prompts become objects, one after the other; on 127.0.0.1 only."""

    config: str = Field(
        "quick-toybox",
        description="config that makes an object of a prompt, with key=value changes of its own behind it if wished",
    )
    overrides: tuple[str, ...] = Field((), description="more key=value changes of it")
    out: str = Field(str(ROOT / "studio"), description="folder of the runs; those that it holds already are shown")
    port: int = Field(8090, ge=0, le=65_535, description="of 127.0.0.1; if it is taken, or 0, one that is free")
    open_browser: bool = Field(False, description="open the page in the browser of this machine")

    def run_config(self, prompt: str, **values: Any) -> Any:
        """The checked config of the run for a prompt; `values` of keys, as far as it has them. Raises ConfigError."""
        from threedgen.systems.batch.jobs import object_config

        return object_config(self.config, self.overrides, prompt, "config", "the studio", values)

    def check(self) -> None:
        folder = user_path(self.out, "out")
        if folder.exists() and not folder.is_dir():
            raise ConfigError("should be a folder, but a file has this name", "out", self.out)
        self.run_config("a red car", prompt_check="off").check()
        super().check()
