"""Generate run with a coloured ball as its field, written in milliseconds without a diffusion model; and its export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from threedgen import cli
from threedgen.config import load
from threedgen.representations.base import Representation
from threedgen.representations.options import FieldConfig
from threedgen.representations.shading import Material
from threedgen.run import folder as runs
from threedgen.train import checkpoint_file

SMALL = ["budget=300", "texture=256", "lods=[100]", "resolution=40", "refine=0"]


class BallConfig(FieldConfig):
    """Config of the test field `ball`."""

    name: str = "ball"
    radius: float = 1.0


class Ball(Representation):
    """Ball with a knob at +x; parameter `place`: x, y, z, radius, density."""

    def __init__(self, config: Any = None, generator: Any = None) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor([0.2, -0.1, 0.1, 0.45, 60.0]))

    def density(self, x: Tensor) -> Tensor:
        centre, radius, peak = self.place[:3], self.place[3], self.place[4]
        knob = torch.tensor([0.8, 0.0, 0.0]) * radius
        out = torch.minimum((x - centre).norm(dim=-1) - radius, (x - centre - knob).norm(dim=-1) - 0.5 * radius)
        return peak * torch.sigmoid(-out / 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return density and colour logits: red in front (+x), else blue."""
        front = (x[:, :1] > self.place[0]).float()
        return self.density(x), 6 * torch.cat([2 * front - 1, 0 * front - 1, 1 - 2 * front], dim=1)


class Negative(Material):
    """Material whose colours are one minus those of the base class."""

    def __call__(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 1 - torch.sigmoid(features)


def register(patch: Any) -> None:
    """Register the field `ball` and the material `negative` until the patch is undone."""
    from threedgen.config import registry

    tables = {kind: dict(table) for kind, table in registry.TABLE.items()}
    patch.setattr(registry, "TABLE", tables)
    registry.register("representation", "ball", "tests.support.ball_run:Ball", "tests.support.ball_run:BallConfig")
    options = "threedgen.representations.options:MaterialConfig"
    registry.register("material", "negative", "tests.support.ball_run:Negative", options)


@pytest.fixture(autouse=True)
def ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the field `ball` and the material `negative` in every test of a file that imports this fixture."""
    register(monkeypatch)


def ball_run(folder: Path, *overrides: str, **place: Any) -> Path:
    """Write a finished run; place: values of the ball's parameter, p0=... to p4=..."""
    words = ["field.name=ball", "occupancy=null", "trainer.max_steps=10", *overrides]
    if not any(word.startswith("prompt=") for word in words):
        words.append("prompt=a ball with a knob")
    config = load("mvdream-toybox", words)
    (folder / "checkpoints").mkdir(parents=True)
    runs.write_config(folder, config)
    field = Ball()
    with torch.no_grad():
        for key, value in place.items():
            field.place[int(key[1:])] = value
    state = {f"field.{name}": value for name, value in field.state_dict().items()}
    checkpoint_file.write(whole_state(state), folder / "checkpoints" / "last.ckpt")
    return folder


def whole_state(state: dict[str, torch.Tensor], step: int = 10) -> dict[str, Any]:
    """Return a complete training checkpoint with these weights."""
    learning = {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": []}
    rates = [{"last_epoch": step}]
    return {
        "state_dict": state, "global_step": step, "loops": {}, "optimizer_states": [learning], "lr_schedulers": rates,
    }  # fmt: skip


def export(run: Path, *words: str) -> int:
    return cli.main(["--config", "export", f"run={run}", *SMALL, *words])


def export_error(capsys: pytest.CaptureFixture[str], run: object, *words: str) -> str:
    """Run an export that must fail with exit code 2; return its one-line error."""
    capsys.readouterr()  # discard warnings from making the run
    assert cli.main(["--config", "export", "--quiet", f"run={run}", *SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error, error
    return error


def asset_manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "asset" / "asset.json").read_text())
