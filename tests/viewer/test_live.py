"""The live view without a browser: who gets a picture when, what the buttons do, and that the run does not notice."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.example_run import Page
from tests.support.fake_window import FakeWindow
from tests.support.task_server import TINY, assert_same, finished_run, prior_folder, server, weights, write_config
from tests.support.toy_run import log
from threedgen import cli, config
from threedgen.config import ConfigError
from threedgen.config import optional as extras
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.rigs import orbit
from threedgen.run.interrupts import Interrupts
from threedgen.run.metrics import read_summary
from threedgen.train.checkpoint_file import LAST, read
from threedgen.viewer.live import EVERY, Eye, LiveView
from threedgen.viewer.options import ViewConfig
from threedgen.viewer.report import PAGE

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Watched:
    """A live view with a clock of its own, of a run whose pictures take a second."""

    def __init__(self, window: Any = None, **options: Any) -> None:
        self.now, self.spent, self.exports = 0.0, 0.0, 0
        self.window = window or FakeWindow()
        self.interrupts = Interrupts()
        self.module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).train()
        self.module.stage, self.module.metrics = "distilling at 64 px", {"opacity": 0.25}
        self.trainer = SimpleNamespace(global_step=0, max_steps=100, is_global_zero=True)
        chosen = ViewConfig(**({"size": 16} | options))
        self.view = LiveView(chosen, self.open, self.pictures, self.export, self.interrupts, clock=lambda: self.now)

    def open(self) -> Any:
        return self.window

    def pictures(self, cameras: Any) -> torch.Tensor:
        assert not self.module.training and not torch.is_grad_enabled()
        self.now += 1
        self.spent += 1
        return torch.rand(1, cameras.height, cameras.width, 3) * 1.2 - 0.1

    def export(self) -> Path:
        assert not self.module.training
        self.now += 60
        self.exports += 1
        random.random(), np.random.rand(), torch.rand(1)
        return Path("run/live/asset.glb")

    def start(self) -> Watched:
        self.view.on_train_start(self.trainer, self.module)
        return self

    def steps(self, count: int, seconds: float = 0.25) -> Watched:
        for _ in range(count):
            self.now += seconds
            self.trainer.global_step += 1
            outputs = {"loss": torch.tensor(0.5)}
            self.view.on_train_batch_end(self.trainer, self.module, outputs, self.trainer.global_step, 0)
        return self

    @property
    def lines(self) -> list[str]:
        return self.window.told[-1][1]


# ---------------------------------------------------------------- who sees what


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_pictures_take_no_more_than_their_share_and_everybody_gets_some(share: float) -> None:
    watched = Watched(share=share).start().steps(400)
    assert share * 0.8 < watched.spent / watched.now <= share + 0.02
    names = [name for name, _ in watched.window.pictures]
    assert len(names) > 10 and names == [k % 2 for k in range(len(names))]
    shapes = {picture.shape for _, picture in watched.window.pictures}
    assert shapes == {(16, 16, 3), (16, 24, 3)}  # each has the shape of its screen
    assert {picture.dtype for _, picture in watched.window.pictures} == {np.dtype("uint8")}


def test_nobody_looks_and_nothing_is_drawn() -> None:
    assert Watched(FakeWindow(people=0)).start().steps(50).spent == 0


def test_figures_are_told_in_words_and_not_at_every_step() -> None:
    watched = Watched(FakeWindow(people=0)).start().steps(41, 0.125)
    assert watched.lines == [
        "distilling at 64 px: step 41 of 100",
        "125 ms/step",
        "7 s left",
        "loss 0.5",
        "opacity 0.25",
    ]
    assert watched.window.told[0] == (0.0, ["distilling at 64 px: step 0 of 100"], False)
    assert watched.window.told[-1][0] == pytest.approx(0.41)
    assert len(watched.window.told) <= 2 + 41 * 0.125 / EVERY
    watched.view.on_train_end(watched.trainer, watched.module)
    assert watched.lines[-1] == "no more steps; the results are being made" and watched.window.told[-1][2]


def test_an_eye_sees_along_the_same_rays_as_its_camera() -> None:
    ring = orbit(5, 0.4, 2.2, 0.6, 10, 15)
    for k in range(5):
        pose = opencv_axes(ring.c2w[k]).double().numpy()
        eye = Eye.opencv(k, pose[:3, :3], pose[:3, 3], 0.6, 1.5)
        assert eye is not None
        camera = eye.camera(10)
        assert camera.width == 15
        for one, other in zip(camera.rays(), ring.select([k]).rays(), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("position", "fov", "aspect"),
    [
        ((0, float("nan"), 0), 0.7, 1.0),
        ((0, 0, 3), float("inf"), 1.0),
        ((0, 0, 3), 0.7, float("nan")),
        ((0, 0, 3), 0.7, 0.0),
    ],
)
def test_numbers_that_are_no_camera_are_nobody(position: tuple, fov: float, aspect: float) -> None:
    assert Eye.opencv(0, np.eye(3), position, fov, aspect) is None


def test_extreme_cameras_are_bounded() -> None:
    eye = Eye.opencv(0, np.eye(3), (0, 0, 0), 9.0, 1000.0)
    assert eye is not None
    camera = eye.camera(16)
    assert camera.width == 64 and float(camera.fov) < 2.7 and all(torch.isfinite(part).all() for part in camera.rays())


# ---------------------------------------------------------------- buttons


def test_the_stop_button_is_a_ctrl_c() -> None:
    watched = Watched(FakeWindow({"3": "stop"})).start().steps(2)
    assert not watched.interrupts.stop
    watched.steps(1)
    assert watched.interrupts.stop and watched.window.told[-1][2] and watched.lines[-1] == "stopping after this step"


def test_the_export_button_leaves_no_trace_in_the_run() -> None:
    watched = Watched(FakeWindow({"2": "export"}, people=0)).start().steps(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    after = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    watched.steps(1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == after
    assert watched.exports == 1 and watched.module.training and not watched.interrupts.stop
    assert watched.lines[-1] == "step 2: run/live/asset.glb"
    waiting = [told for told in watched.window.told if told[1][-1] == "step 2: the asset is being made, the run waits"]
    assert len(waiting) == 1 and waiting[0][2]
    watched.steps(5)
    assert "250 ms/step" in watched.lines  # the minute of the export is forgotten


def test_what_is_pressed_while_an_asset_is_made() -> None:
    watched = Watched(FakeWindow({"1": "export", "2": "export"})).start().steps(3)
    assert watched.exports == 1
    watched = Watched(FakeWindow({"1": "export", "2": "stop"})).start().steps(1)
    assert watched.exports == 1 and watched.interrupts.stop
    watched = Watched(FakeWindow({"1": "export stop"})).start().steps(1)
    assert watched.exports == 0 and watched.interrupts.stop


# ---------------------------------------------------------------- what goes wrong


def test_an_export_that_fails_is_said_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(FakeWindow({"1": "export", "3": "export"}))
    watched.view.export = lambda: (_ for _ in ()).throw(ConfigError("the field is empty"))
    watched.start().steps(1)
    assert watched.lines[-1] == "step 1: no asset: the field is empty" and "the field is empty" in caplog.text
    watched.view.export = watched.export
    watched.steps(1)
    assert watched.exports == 1 and watched.lines[-1].endswith("asset.glb") and watched.window.closed == 0


def test_a_window_that_breaks_is_closed_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched().start()
    watched.window.show = lambda eye, picture: 1 / 0
    close = watched.window.close
    watched.window.close = lambda: (close(), 1 / 0)
    watched.steps(5)
    assert watched.window.closed == 1 and watched.spent == 1
    assert caplog.text.count("the live view was closed, the run goes on: ZeroDivisionError") == 1
    watched.view.on_train_end(watched.trainer, watched.module)
    watched.view.close()
    assert watched.window.closed == 1


def test_ctrl_c_goes_through() -> None:
    watched = Watched(FakeWindow({"1": "export"})).start()
    watched.view.export = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        watched.steps(1)


def test_a_window_that_cannot_be_opened_is_one_sentence() -> None:
    watched = Watched()
    watched.view._open = lambda: (_ for _ in ()).throw(OSError("no\nsockets"))
    with pytest.raises(ConfigError, match=r"^--view: no window could be opened \(OSError: no sockets\); leave it out$"):
        watched.start()


def test_only_the_first_device_has_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.trainer.is_global_zero = False
    assert watched.start().steps(3).spent == 0 and watched.window.told == []
    assert capsys.readouterr().err == ""
    Watched().start()
    assert capsys.readouterr() == ("", "live view: http://127.0.0.1:1\n")


# ---------------------------------------------------------------- the config


def test_the_view_is_no_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, watched = (config.load("mvdream-toybox", words) for words in ([], ["view.enabled=true", "view.port=9000"]))
    assert watched.view.enabled and watched.view.port == 9000 and not plain.view.enabled
    assert config.dump(watched) == config.dump(plain) and config.config_hash(watched) == config.config_hash(plain)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--view", "prompt=a dog"], "--view needs the package viser: pip install -e '.[viser]', or leave it out"),
        (["view.enabled=true", "prompt=a dog"], "--view needs the package viser"),
        (["--view", "--config", "sample-toybox", "prompt=a dog"], "--view: a run of the task generate"),
        (["--view", "view.port=70000", "prompt=a dog"], "view.port"),
        (["--vew", "prompt=a dog"], "did you mean '--view'?"),
    ],
)
def test_mistakes_are_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras, "installed", lambda module: False)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_help_knows_the_view(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "  --view  " in text and "  view.port" in text and "view.share" in text


# ---------------------------------------------------------------- whole runs

ASSET = ["export.budget=200", "export.texture=64", "export.lods=[]", "export.resolution=16", "export.refine=0"]


def command(folder: Path, *overrides: str) -> list[str]:
    prior = {"weights": str(prior_folder()), "dtype": "fp32"}
    path = write_config(folder / "tiny.yaml", TINY | {"prior": prior})
    return ["--config", str(path), "out=run", *ASSET, *overrides]


@unix
def test_a_run_that_is_watched_is_the_run_that_is_not(tmp_path: Path) -> None:
    """Pictures at every step and an asset on the way, and the result has the same bits."""
    words = ["--view", "view.size=16", "view.share=0.99"]
    assert server().run(tmp_path, words=[*command(tmp_path), *words], window={"8": "export"}) == 0, log(tmp_path)
    run, alone = tmp_path / "run", finished_run(command)
    assert_same(weights(run), weights(alone))
    one, other = (read(folder / "checkpoints" / LAST) for folder in (run, alone))
    assert one["config_yaml"] == other["config_yaml"] and one["chunks"] == other["chunks"]
    for name in ("config.yaml", "mesh.glb", "views.png"):
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name
    assert read_summary(run)["config_hash"] == read_summary(alone)["config_hash"]
    assert (run / "live/000008/a_red_dog.glb").stat().st_size > 1000
    cells = Page((run / PAGE).read_text(encoding="utf-8")).texts["td"]
    assert cells[cells.index("live/000008/a_red_dog.glb") + 2].startswith("of an asset that was asked for on the way")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen["pictures"]) >= 8 and {name for name, _, _ in seen["pictures"]} == {0, 1}
    assert all(shape == [16, 16 + 8 * name, 3] and spread > 0.1 for name, shape, spread in seen["pictures"])
    assert [told for told in seen["told"] if told[1][-1] == "step 8: run/live/000008/a_red_dog.glb"]
    assert seen["told"][-1][0] == 1 and "live view: http://127.0.0.1:1" in log(tmp_path).splitlines()
    assert not list(run.rglob("*.tmp"))


@unix
def test_a_run_that_is_stopped_in_its_window_ends_with_its_asset_and_goes_on(tmp_path: Path) -> None:
    words = [*command(tmp_path, "export.enabled=true"), "--view"]
    assert server().run(tmp_path, words=words, window={"7": "stop"}) == 130, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "interrupted" and summary["steps"] == 7
    assert (tmp_path / "run" / summary["asset"]["file"]).exists() and (tmp_path / "run/report.html").exists()
    assert "Traceback" not in log(tmp_path)
    assert server().run(tmp_path, words=["--resume", "run", "--view"], window={}) == 0, log(tmp_path)
    assert_same(weights(tmp_path / "run"), weights(finished_run(command)))
