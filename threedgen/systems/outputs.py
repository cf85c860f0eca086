"""What a generate run leaves behind: turntable, views, mesh, summary; and the object that Python gets back."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threedgen.cameras import turntable
from threedgen.config import config_hash
from threedgen.export.glb import save_glb
from threedgen.export.mesh import EmptyField, extract
from threedgen.export.options import FOLDER
from threedgen.export.run_field import albedo
from threedgen.images import grid, write_mp4, write_png
from threedgen.ledger import read_summary

from .asset import write_asset
from .generate import GenerateSystem

logger = logging.getLogger(__name__)
VIEWS = 8
"""Sides on views.png, in two rows."""
FILES = ("preview.png", "turntable.mp4", "views.png", "mesh.glb")
"""What a run makes, as far as it can."""


@dataclass(frozen=True)
class Run:
    """A run folder and its files; a file that the run could not make is None."""

    folder: Path
    status: str

    def file(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.exists() else None

    @property
    def mesh(self) -> Path | None:
        """mesh.glb: vertex colours, +Y up, front +Z."""
        return self.file("mesh.glb")

    @property
    def asset(self) -> Path | None:
        """The GLB in asset/: textured, within the triangle budget; its levels of detail and collider lie beside it."""
        told = read_summary(self.folder).get("asset")
        return self.file(str(told["file"])) if isinstance(told, dict) and "file" in told else None

    @property
    def turntable(self) -> Path | None:
        """turntable.mp4"""
        return self.file("turntable.mp4")

    @property
    def views(self) -> Path | None:
        """views.png: eight sides of the result."""
        return self.file("views.png")

    @property
    def preview(self) -> Path | None:
        """preview.png: the views that the prior sampled from the prompt."""
        return self.file("preview.png")

    @property
    def report(self) -> Path | None:
        """report.html: all of it on one page."""
        return self.file("report.html")

    @property
    def summary(self) -> Path | None:
        """summary.json: time, memory, versions, seed."""
        return self.file("summary.json")


def view_indices(n: int) -> list[int]:
    """Which of the ``n`` turntable pictures are on views.png: eight, evenly, or all if there are fewer."""
    count = min(VIEWS, n)
    return [k * n // count for k in range(count)]


def write_results(system: GenerateSystem, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Draw and export the field; returns figures for the summary.  A field without a surface is a note, no error."""
    config = system.config
    system.eval()
    pictures = system.pictures(turntable(config.result.turntable))
    write_mp4(list(pictures), folder / "turntable.mp4", config.result.fps)
    write_png(folder / "views.png", grid(pictures[view_indices(len(pictures))], VIEWS // 2))
    figures: dict[str, Any] = {}
    try:
        mesh = extract(
            system.field.density,
            lambda x: albedo(system.field, x),
            config.result.mesh_resolution,
            config.march.radius,
            mask=None if system.occupancy is None else system.occupancy.binary.cpu().numpy(),
            device=system.device,
        )
    except EmptyField as error:
        notes.append(str(error))
        logger.warning("%s", error)
        (folder / "mesh.glb").unlink(missing_ok=True)  # of an earlier, shorter part of the run
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        return figures
    extras = {"prompt": config.prompt, "seed": config.seed, "config_hash": config_hash(config)}
    save_glb(mesh, folder / "mesh.glb", extras)
    figures |= {"vertices": len(mesh.vertices), "triangles": len(mesh.faces)}
    return figures | (write_asset(system, folder, notes) if config.export.enabled else {})
