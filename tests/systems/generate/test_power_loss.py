"""A run whose machine loses power, at any moment, goes on from what the disk holds."""

import functools
from pathlib import Path

import pytest

from tests.support.kept_folder import kept_folder
from tests.support.marks import unix
from tests.support.power_loss import State, restore, states
from tests.support.task_server import assert_same, finished_run, server, tiny_generate, weights
from tests.support.toy_run import log
from threedgen.run.metrics import read_metrics, read_summary

FILES = ("views.png", "turntable.mp4", "mesh.glb", "asset/a_red_dog.glb")


def command(folder: Path) -> list[str]:
    config = tiny_generate(folder, export={"budget": 200, "texture": 64, "lods": [], "resolution": 16, "refine": 2})
    return ["--config", str(config), "out=run"]


@functools.cache
def recorded() -> tuple[Path, list[State]]:
    """Return the folder of the recorded contents, and what a power loss at each moment of a run leaves."""
    folder = kept_folder()
    words, work = command(folder), folder / "work"
    work.mkdir()
    assert server().run(work, words=words, power_loss=str(folder / "states")) == 0, log(work)
    return folder / "states", states(folder / "states")


def assert_goes_on(number: int, folder: Path) -> None:
    whole, (contents, found) = finished_run(command), recorded()
    words, work = command(folder), folder / "work"
    work.mkdir()
    restore(found[number], contents, work)
    assert server().run(work, words=words) == 0, (number, log(work))
    assert_same(weights(work / "run"), weights(whole))
    assert [row["step"] for row in read_metrics(work / "run")] == [row["step"] for row in read_metrics(whole)]
    assert read_summary(work / "run")["triangles"] == read_summary(whole)["triangles"]
    for name in FILES:
        assert (work / "run" / name).read_bytes() == (whole / name).read_bytes(), (number, name)


@unix
def test_run_goes_on_after_a_power_loss(tmp_path: Path) -> None:
    assert_goes_on(len(recorded()[1]) // 2, tmp_path)


@unix
@pytest.mark.slow
def test_run_goes_on_after_a_power_loss_at_any_moment(tmp_path: Path) -> None:
    print(f"{len(recorded()[1])} states of the disk")
    for number in range(len(recorded()[1])):
        (tmp_path / str(number)).mkdir()
        assert_goes_on(number, tmp_path / str(number))
