from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.errors import refused
from tests.support.fake_window import FakeWindow
from tests.support.task_server import assert_same, finished_run, server, tiny_generate, weights
from tests.support.toy_run import log
from threedgen.config import optional as extras
from threedgen.run.interrupts import Interrupts
from threedgen.run.metrics import read_summary
from threedgen.train.checkpoint_file import LAST, read
from threedgen.viewer.live import LiveView
from threedgen.viewer.options import ViewConfig


class FakeRun:
    """Run with a live view and a simulated clock; a render takes one second."""

    def __init__(self, **options: Any) -> None:
        self.now, self.render_seconds, self.window = 0.0, 0.0, FakeWindow()
        self.module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).train()
        self.module.stage, self.module.metrics = "distilling at 64 px", {"opacity": 0.25}
        self.trainer = SimpleNamespace(global_step=0, max_steps=100, is_global_zero=True)
        config = ViewConfig(**({"size": 16} | options))
        self.view = LiveView(config, lambda: self.window, self.render, Interrupts())
        self.view.clock = lambda: self.now

    def render(self, cameras: Any) -> torch.Tensor:
        assert not self.module.training and not torch.is_grad_enabled()
        self.now += 1
        self.render_seconds += 1
        return torch.rand(1, cameras.height, cameras.width, 3) * 1.2 - 0.1

    def start(self) -> FakeRun:
        self.view.on_train_start(self.trainer, self.module)
        return self

    def steps(self, count: int, seconds: float = 0.25) -> FakeRun:
        for _ in range(count):
            self.now += seconds
            self.trainer.global_step += 1
            outputs = {"loss": torch.tensor(0.5)}
            self.view.on_train_batch_end(self.trainer, self.module, outputs, self.trainer.global_step, 0)
        return self


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_rendering_keeps_its_time_share_and_serves_all_clients(share: float) -> None:
    run = FakeRun(share=share).start().steps(400)
    assert share * 0.8 < run.render_seconds / run.now <= share + 0.02
    clients = [client for client, _ in run.window.images]
    assert len(clients) > 10 and clients == [k % 2 for k in range(len(clients))]
    assert {image.shape for _, image in run.window.images} == {(16, 16, 3), (16, 24, 3)}  # aspect of each client
    assert {image.dtype for _, image in run.window.images} == {np.dtype("uint8")}


def test_broken_window_is_closed_and_the_run_continues(caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun().start()
    run.window.show = lambda client, image: 1 / 0
    close = run.window.close
    run.window.close = lambda: (close(), 1 / 0)
    run.steps(5)
    assert run.window.closed == 1 and run.render_seconds == 1
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "ZeroDivisionError" in record.getMessage()
    run.view.on_train_end(run.trainer, run.module)
    run.view.close()
    assert run.window.closed == 1


def test_window_that_cannot_open_is_refused() -> None:
    """Only the first device opens one."""
    run = FakeRun()
    run.view._open = lambda: (_ for _ in ()).throw(OSError("no\nsockets"))
    with refused("--view", "OSError: no sockets"):
        run.start()
    run.trainer.is_global_zero = False
    assert run.start().steps(3).render_seconds == 0 and run.window.updates == []


def test_mistakes_are_reported_before_the_run(tmp_path, monkeypatch, refuses) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras, "installed", lambda module: False)
    refuses(["--view", "prompt=a dog"], "--view", 'pip install -e ".[viser]"')
    refuses(["--view", "--config", "sample-toybox", "prompt=a dog"], "--view", "generate")
    refuses(["--view", "view.port=70000", "prompt=a dog"], "view.port", "70000")
    assert not list(tmp_path.iterdir())


# --- whole runs

ASSET = ["export.budget=200", "export.texture=64", "export.lods=[]", "export.resolution=16", "export.refine=0"]


def command(folder: Path, *overrides: str) -> list[str]:
    return ["--config", str(tiny_generate(folder)), "out=run", *ASSET, *overrides]


def test_viewed_run_has_the_same_result(tmp_path: Path) -> None:
    """Renders at every step do not change a bit of the result."""
    words = ["--view", "view.size=16", "view.share=0.99"]
    assert server().run(tmp_path, words=[*command(tmp_path), *words], window=0) == 0, log(tmp_path)
    run, alone = tmp_path / "run", finished_run(command)
    assert_same(weights(run), weights(alone))
    one, other = (read(folder / "checkpoints" / LAST) for folder in (run, alone))
    assert one["config_yaml"] == other["config_yaml"] and one["chunks"] == other["chunks"]
    for name in ("config.yaml", "mesh.glb", "views.png"):
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name
    assert read_summary(run)["config_hash"] == read_summary(alone)["config_hash"]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen["images"]) >= 8 and {client for client, _, _ in seen["images"]} == {0, 1}
    assert all(shape == [16, 16 + 8 * client, 3] and spread > 0.1 for client, shape, spread in seen["images"])
    assert seen["updates"][-1][0] == 1 and FakeWindow.url in log(tmp_path)
    assert not list(run.rglob("*.tmp"))


def test_run_stopped_in_the_window_exports_and_resumes(tmp_path: Path) -> None:
    words = [*command(tmp_path, "export.enabled=true"), "--view"]
    assert server().run(tmp_path, words=words, window=7) == 130, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "interrupted" and summary["steps"] == 7
    assert (tmp_path / "run" / summary["asset"]["file"]).exists() and (tmp_path / "run/report.html").exists()
    assert "Traceback" not in log(tmp_path)
    assert server().run(tmp_path, words=["--resume", "run", "--view"], window=0) == 0, log(tmp_path)
    assert_same(weights(tmp_path / "run"), weights(finished_run(command)))
