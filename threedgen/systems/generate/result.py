"""Return value of `threedgen.generate`, and the lines that a run prints at its end."""

import base64
import html
import sys
from dataclasses import dataclass
from pathlib import Path

from threedgen.export.asset_folder import FOLDER, read_manifest
from threedgen.export.options import resize_command
from threedgen.run.metrics import read_summary
from threedgen.run.text import say

FILES = ("preview.png", "turntable.mp4", "views.png", "views.npz", "mesh.glb")
"""Main files of a finished run. A file may be missing: without a surface, for example, there is no mesh.glb."""


def _file(name: str, about: str) -> property:
    return property(lambda run: run.file(name), doc=f"{name}: {about}")


@dataclass(frozen=True)
class Run:
    """Folder of a run. A property is the path of a result file, or None if the run did not write the file."""

    folder: Path
    status: str

    preview = _file("preview.png", "the views that the prior sampled from the prompt")
    turntable = _file("turntable.mp4", "one turn around the result")
    views = _file("views.png", "eight sides of the result")
    mesh = _file("mesh.glb", "vertex colours, +Y up, front +Z")
    report = _file("report.html", "all of it on one page")
    summary = _file("summary.json", "time, memory, versions, seed")

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the folder by its relative name, or None if it does not exist."""
        path = self.folder / name
        return path if path.exists() else None

    @property
    def asset(self) -> Path | None:
        """Path of the textured mesh within the triangle budget. Its levels of detail and collider are beside it."""
        figures = read_summary(self.folder).get("asset")
        return self.file(str(figures["file"])) if isinstance(figures, dict) and "file" in figures else None

    def _repr_html_(self) -> str:
        lines = [f"<p>{html.escape(self.status)}: <code>{html.escape(str(self.folder))}</code></p>"]
        if self.views is not None:
            image = base64.b64encode(self.views.read_bytes()).decode()
            lines.append(f'<img alt="eight sides of the result" src="data:image/png;base64,{image}">')
        for name, path in (("asset", self.asset), ("page", self.report)):
            if path is not None:
                lines.append(f"<p>{name}: <code>{html.escape(str(path))}</code></p>")
        return "\n".join(lines)


def print_result(run: Run, quiet: bool = False) -> None:
    """Print the paths of a run's asset, report and folder; with `quiet`, print only the folder."""
    if run.asset is not None and not quiet:
        height = (read_summary(run.folder).get("asset") or {}).get("height", "")
        again = resize_command(run.folder, read_manifest(run.folder / FOLDER).get("preset"))
        say(f"asset: {run.asset} ({height})\nanother height: {again}" if height else f"asset: {run.asset}")
    if run.report is not None and not quiet:
        say(f"page: {run.report}")
    say(str(run.folder))
    if run.report is not None and not quiet and sys.stderr.isatty():
        say(f"open in a browser: {run.report.resolve().as_uri()}", sys.stderr)
