"""What Python gets back from a generate run, and what a terminal does."""

from __future__ import annotations

import base64
import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threedgen.export.asset_folder import FOLDER, read_manifest
from threedgen.export.options import resize_command
from threedgen.run.metrics import read_summary
from threedgen.run.text import say

FILES = ("preview.png", "turntable.mp4", "views.png", "views.npz", "mesh.glb")
"""What a run makes, as far as it can."""


def _file(name: str, about: str) -> Any:
    return property(lambda run: run.file(name), doc=f"{name}: {about}")


@dataclass(frozen=True)
class Run:
    """A run folder and its files; a file that the run could not make is None."""

    folder: Path
    status: str

    preview = _file("preview.png", "the views that the prior sampled from the prompt")
    turntable = _file("turntable.mp4", "one turn around the result")
    views = _file("views.png", "eight sides of the result")
    mesh = _file("mesh.glb", "vertex colours, +Y up, front +Z")
    report = _file("report.html", "all of it on one page")
    summary = _file("summary.json", "time, memory, versions, seed")

    def file(self, name: str) -> Path | None:
        """The file of this name in the folder, if there is one."""
        path = self.folder / name
        return path if path.exists() else None

    @property
    def asset(self) -> Path | None:
        """The GLB in asset/: textured, within the triangle budget; its levels of detail and collider lie beside it."""
        figures = read_summary(self.folder).get("asset")
        return self.file(str(figures["file"])) if isinstance(figures, dict) and "file" in figures else None

    def _repr_html_(self) -> str:
        """What a notebook shows: how it ended, the eight sides, and where asset and page are."""
        lines = [f"<p>{html.escape(self.status)}: <code>{html.escape(str(self.folder))}</code></p>"]
        if self.views is not None:
            picture = base64.b64encode(self.views.read_bytes()).decode()
            lines.append(f'<img alt="eight sides of the result" src="data:image/png;base64,{picture}">')
        for name, path in (("asset", self.asset), ("page", self.report)):
            if path is not None:
                lines.append(f"<p>{name}: <code>{html.escape(str(path))}</code></p>")
        return "\n".join(lines)


def tell(run: Run, quiet: bool = False) -> None:
    """Prints where a run's asset and page are, and last its folder; below it a terminal is told what to open."""
    if run.asset is not None and not quiet:
        height = (read_summary(run.folder).get("asset") or {}).get("height", "")
        again = resize_command(run.folder, read_manifest(run.folder / FOLDER).get("preset"))
        say(f"asset: {run.asset} ({height})\nanother height: {again}" if height else f"asset: {run.asset}")
    if run.report is not None and not quiet:
        say(f"page: {run.report}")
    say(str(run.folder))
    if run.report is not None and not quiet and sys.stderr.isatty():
        say(f"open in a browser: {run.report.resolve().as_uri()}", sys.stderr)
