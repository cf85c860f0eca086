"""Return value of `threedgen.generate`, and the lines that a run prints at its end."""

import sys
from dataclasses import dataclass
from pathlib import Path

from threedgen.export.options import resize_command
from threedgen.run.metrics import read_summary
from threedgen.run.text import say

FILES = ("preview.png", "turntable.mp4", "views.png", "views.npz", "mesh.glb")
"""Main files of a finished run. A file may be missing: without a surface, for example, there is no mesh.glb."""


@dataclass(frozen=True)
class Run:
    """Folder of a run, and its final status.

    The status is "finished", or "interrupted" if the run was stopped before its last step.
    """

    folder: Path
    status: str

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the folder by its relative name, or None if it does not exist."""
        path = self.folder / name
        return path if path.exists() else None

    @property
    def asset(self) -> Path | None:
        """Path of the exported textured mesh; None if there is none. Of several GLB files it is the most detailed one.

        Its folder also has the other levels of detail and the collider, a simple mesh for collisions.
        """
        figures = read_summary(self.folder).get("asset")
        return self.file(str(figures["file"])) if isinstance(figures, dict) and "file" in figures else None


def print_result(run: Run, quiet: bool = False) -> None:
    """Print the paths of a run's asset, report and folder; with `quiet`, print only the folder."""
    if run.asset is not None and not quiet:
        height = (read_summary(run.folder).get("asset") or {}).get("height", "")
        again = resize_command(run.folder)
        say(f"asset: {run.asset} ({height})\nanother height: {again}" if height else f"asset: {run.asset}")
    page = None if quiet else run.file("report.html")
    if page is not None:
        say(f"page: {page}")
    say(str(run.folder))
    if page is not None and sys.stderr.isatty():
        say(f"open in a browser: {page.resolve().as_uri()}", sys.stderr)
