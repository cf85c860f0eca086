from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from threedgen.run.text import clean
from threedgen.train.progress import Progress


class FakeRun:
    """Run of `total` steps with a Progress callback that writes into memory, and a fake clock."""

    def __init__(self, total: int = 100, start: int = 0, terminal: bool = False, **options) -> None:
        self.now = 100.0
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=100, color_system=None)
        self.progress = Progress(console=console, clock=lambda: self.now, **options)
        self.trainer = SimpleNamespace(
            global_step=start, max_steps=total, is_global_zero=True, accumulate_grad_batches=1
        )
        self.module = SimpleNamespace(stage="generate 64 px", metrics={"occupancy": 0.25, "hidden": 1.0})
        self.progress.on_train_start(self.trainer, self.module)

    def steps(self, count: int, seconds: float, loss: float = 0.5) -> FakeRun:
        for n in range(count):
            self.now += seconds
            self.trainer.global_step += 1
            self.progress.on_train_batch_end(
                self.trainer, self.module, {"loss": torch.tensor(loss)}, self.trainer.global_step, n
            )
        return self

    def end(self) -> list[str]:
        self.progress.on_train_end(self.trainer, self.module)
        return self.file.getvalue().splitlines()


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)


def test_progress_prints_each_minute_and_quarter():
    lines = FakeRun(total=1000, metrics=["occupancy"]).steps(1000, 1.0).end()
    steps = [int(line.split(": ")[1].split("/")[0]) for line in lines]
    assert {0, 250, 500, 750, 1000} <= set(steps)
    gaps = np.diff(steps)
    assert gaps.max() <= 60 and all(gap == 60 or step % 250 == 0 for gap, step in zip(gaps, steps[1:], strict=True))
    line = lines[steps.index(500)]
    assert line == "generate 64 px: 500/1000, 1 s/step, 8:20 min left, loss 0.5, occupancy 0.25"


@pytest.mark.parametrize(
    ("total", "steps", "left"),
    [
        (300, [(1, 9.0), (8, 0.25)], []),  # the slow first step, which compiles kernels, does not count
        (300, [(1, 9.0), (9, 0.25)], ["1:12 min left"]),
        (3, [(1, 60.0)], ["2:00 min left"]),
        (10_000, [(2000, 0.01), (20, 3.0)], ["6:39 h left"]),  # from the speed of the last 30 seconds
    ],
)
def test_time_left_is_shown_when_it_is_known(total, steps, left):
    run = FakeRun(total=total)
    for count, seconds in steps:
        run.steps(count, seconds)
    assert run.progress.display.left() == left


def test_progress_shows_a_bar_in_a_terminal_but_not_in_ci(monkeypatch):
    text = "\n".join(FakeRun(total=40, terminal=True).steps(40, 1.0).end())
    assert "generate 64 px" in text and "40/40" in text and "loss 0.5" in text
    for terminal in (False, True):
        assert FakeRun(quiet=True, terminal=terminal).steps(100, 60.0).end() == []
    monkeypatch.setenv("CI", "1")
    assert FakeRun(total=40, terminal=True).steps(10, 1.0).end()[0] == "generate 64 px: 0/40"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_escapes_markup_and_control_characters(terminal):
    run = FakeRun(total=4, terminal=terminal)
    run.module.stage = "[red]cat[/red] [/cat] \x1b[31m\n$HOME :smile:"
    text = "\n".join(run.steps(4, 1.0).end())
    assert "[red]cat[/red] [/cat] [31m $HOME :smile:" in text
    assert "\x1b[31m" not in text


@given(st.text(st.characters(codec=None)))
def test_clean_returns_one_line(text):
    cleaned = clean(text)
    assert "\n" not in cleaned and "\x1b" not in cleaned
    assert cleaned == clean(cleaned)
    cleaned.encode("utf-8")
