"""Config model of the studio. This module does not import torch."""

import os
import re
from typing import Any

from pydantic import Field

from threedgen.config.errors import ConfigError
from threedgen.config.sections import TaskConfig
from threedgen.run.folder import ROOT, user_path
from threedgen.viewer.local import HOST, LOCAL_NAMES

TOKEN_VARIABLE = "THREEDGEN_TOKEN"
MIN_TOKEN = 16
TOKEN = rf"^[A-Za-z0-9_-]{{{MIN_TOKEN},200}}$"
"""Pattern of the token, the secret that grants access to the studio: 16 to 200 letters, digits, "-" and "_"."""


class StudioConfig(TaskConfig):
    """Browser page, with a JSON API, that generates objects from prompts, one run at a time.

    Options of the task "studio".
    """

    config: str = Field("quick-toybox", description="config of the runs, optionally followed by key=value overrides")
    overrides: tuple[str, ...] = Field((), description="further key=value overrides of that config")
    out: str = Field(str(ROOT / "studio"), description="folder of the runs; existing runs in it are listed")
    host: str = Field(HOST, min_length=1, description="address to listen on; other than 127.0.0.1 it needs a token")
    port: int = Field(8090, ge=0, le=65_535, description="port; 0 or a port in use: any free port")
    token: str | None = Field(
        None,
        pattern=TOKEN,
        description=f"secret of page and API, {MIN_TOKEN} or more letters and digits; null: {TOKEN_VARIABLE} or random",
    )

    def run_config(self, prompt: str, **values: object) -> Any:
        """Return the config of a run that makes an object of a prompt.

        It is the config that the option `config` names, changed by the option `overrides` and by `values`, a new value
        for each config key. A key such as "export.format" is ignored if the config has no section `export`. Raises
        ConfigError if a value is invalid, or if the task of the config does not make an object of a prompt.
        """
        from threedgen.systems.batch.jobs import object_config

        return object_config(self.config, self.overrides, prompt, "config", "the studio", values)

    @property
    def local(self) -> bool:
        """Whether the server is reachable only from this machine."""
        return self.host in LOCAL_NAMES

    @property
    def own_token(self) -> str | None:
        """Access token from the config, or else from the environment variable THREEDGEN_TOKEN; None if neither is set.

        Raises ConfigError if the variable has fewer than 16 characters (MIN_TOKEN), more than 200, or other characters
        than letters, digits, "-" and "_".
        """
        found = self.token or os.environ.get(TOKEN_VARIABLE)
        if found and not re.fullmatch(TOKEN, found):
            wanted = f"{MIN_TOKEN} to 200 letters, digits, '-' or '_'"
            raise ConfigError(f"the environment variable {TOKEN_VARIABLE} should have {wanted}", "token")
        return found or None

    def check(self) -> None:
        folder = user_path(self.out, "out")
        if folder.exists() and not folder.is_dir():
            raise ConfigError("should be a folder, but is a file", "out", self.out)
        if self.own_token is None and not self.local:
            raise ConfigError(f"needs a token. Set token=... or the variable {TOKEN_VARIABLE}", "host", self.host)
        self.run_config("a red car", prompt_check="off").check()
        super().check()
