"""A world for the benchmark's tests: boxes whose sides have the four colours of their names, a task that makes them in
a known time, and a classifier that knows the colours. Known by name to worker processes too."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from threedgen.config import Config, ConfigError, registry
from threedgen.config.sections import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

COLOURS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])  # front, left, back, right


class StubConfig(RunConfig):
    prompt: str = ""
    fronts: int = Field(1, ge=0, le=2)
    seconds: float = 0.0
    boxes: str = Field("", description="folder with 0.glb, 1.glb and 2.glb, so that workers need no torch")
    log: str = Field("", description="file with a line for each time that a box is started, and for each that is done")
    trouble: Literal["", "weights", "late weights", "error", "fails", "empty", "damaged", "stops once"] = ""

    def check(self) -> None:
        if self.trouble == "weights":
            raise ConfigError("weights: there is no file 'sd.ckpt'")


class StubSidesConfig(Config):
    name: Literal["stub"] = "stub"
    weights: str = "none"


def register() -> None:
    registry.register("task", "stub-object", "tests.support.janus_stub:run", "tests.support.janus_stub:StubConfig")
    registry.register(
        "view-classifier", "stub", "tests.support.janus_stub:StubSides", "tests.support.janus_stub:StubSidesConfig"
    )


def box(fronts: int = 1):
    """A box of the export's Mesh: red in front; with two fronts behind as well, with none grey there."""
    from threedgen.export.shape.mesh import Mesh

    paints = [COLOURS[0] if fronts else [0.3] * 3, COLOURS[1], COLOURS[0 if fronts == 2 else 2], COLOURS[3]]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * 0.4
    vertices, colours, normals = [], [], []
    for k, paint in enumerate(paints):
        c, s = np.cos(k * np.pi / 2), np.sin(k * np.pi / 2)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        vertices.append(np.c_[np.full(4, 0.4), corners] @ turn.T)
        colours.append(np.tile(paint, (4, 1)))
        normals.append(np.tile(turn[:, 0], (4, 1)))
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * k for k in range(4)])
    arrays = [np.concatenate(a).astype(np.float32) for a in (vertices, colours, normals)]
    return Mesh(arrays[0], faces.astype(np.int32), arrays[1], arrays[2])


def note(config: StubConfig, word: str) -> int:
    """A line in the log; returns how many such lines there are of this job."""
    line = f"{word} {Path(str(config.out)).name}\n"
    with open(config.log, "a", encoding="utf-8") as file:
        file.write(line)
    return Path(config.log).read_text(encoding="utf-8").count(line)


def run(config: StubConfig, resume: Path | None = None, quiet: bool = False) -> int:
    from threedgen.run.metrics import write_summary

    folder = Path(str(config.out))
    started = note(config, "started")
    if config.trouble == "late weights":
        raise ConfigError("weights: the hub has no such id")
    if config.trouble == "error":
        raise RuntimeError("no memory")
    if config.trouble == "stops once" and started == 1:
        return 130
    if config.trouble == "fails":
        write_summary(folder, config, 1.0, status="failed", reason="the loss was no longer a number")
        return 2
    time.sleep(config.seconds)
    if config.trouble != "empty":
        shutil.copy(Path(config.boxes) / f"{config.fronts}.glb", folder / "mesh.glb")
    if config.trouble == "damaged":
        (folder / "mesh.glb").write_bytes((folder / "mesh.glb").read_bytes()[:200])
    write_summary(folder, config, config.seconds, status="finished")
    note(config, "done")
    print("a task says where its results are")
    return 0


class StubSides:
    """As many votes for a side as a picture has pixels of its colour."""

    def __init__(self, config: StubSidesConfig) -> None:
        pass

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        import torch

        away = (pictures[..., None, :].double() - torch.from_numpy(COLOURS)).norm(dim=-1)
        votes = (away < 0.3).flatten(1, 2).sum(1) + 0.01
        return votes / votes.sum(1, keepdim=True)

    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor | None:
        import torch

        return torch.arange(len(prompts), 0, -1).double().repeat(len(pictures), 1)
