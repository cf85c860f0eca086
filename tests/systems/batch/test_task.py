"""A batch of boxes: what is made, by whom, how often, and what the page and the table say."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.support.janus_bench import log, method, stub  # noqa: F401
from tests.support.task_server import tiny_generate
from threedgen import cli
from threedgen.config import load
from threedgen.systems.batch.task import plan


def command(*more: str) -> int:
    if not Path("prompts.txt").exists():
        Path("prompts.txt").write_text("\ufeffa blue dog\n# a remark\n\n  a red   car\na blue dog\n")
    words = ["prompts=prompts.txt", "seeds=[0, 1]", "configs=[good, bad fronts=1]", "out=run", "threads=1", "-q"]
    return cli.main(["--config", "batch", *words, *more])


def table() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("run/batch.csv").open()))


def test_prompts_times_configs_times_seeds_each_in_its_own_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0 and capsys.readouterr().out.strip() == "run/gallery.html"
    rows = table()
    assert len(rows) == len({row["folder"] for row in rows}) == 8 and {row["state"] for row in rows} == {"finished"}
    assert {row["prompt"] for row in rows} == {"a blue dog", "a red car"} and len(log()) == 16
    assert all((Path("run") / row["folder"] / "mesh.glb").exists() for row in rows)
    record = json.loads((Path("run") / rows[1]["folder"] / "job.json").read_text())
    assert (record["state"], record["method"]) == ("finished", "bad fronts=1")
    assert json.loads(Path("run/summary.json").read_text())["states"] == {"finished": 8}


def test_the_job_that_runs_is_named_and_all_changes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompts=prompts.txt", "configs=[good fronts=1]", "overrides=[fronts=2, seconds=0]", "out=run"]
    Path("prompts.txt").write_text("a blue dog\na red car\n")
    assert cli.main(["--config", "batch", *words]) == 0
    named = "good fronts=2 seconds=0 fronts=1"  # the last one holds
    said, (dog, car) = capsys.readouterr().err.splitlines(), table()
    assert dog["config"] == car["config"] == named
    assert f"objects: 0/2, {named} a blue dog 0, run/{dog['folder']}" in said
    assert f"objects: 1/2, {named} a red car 0, run/{car['folder']}" in said


def test_what_is_there_is_not_made_again_and_a_prompt_more_is_made() -> None:
    assert command() == 0 and command() == 0 and set(log().values()) == {1}
    with Path("prompts.txt").open("a") as file:
        file.write("a green frog\n")
    assert command() == 0 and set(log().values()) == {1} and len(table()) == 12


def test_failures_are_listed_and_the_others_made(caplog: pytest.LogCaptureFixture) -> None:
    for trouble in ("error", "late weights", "fails"):
        method(trouble.replace(" ", "-"), f"trouble: {trouble}")
    assert command("configs=[good, error, late-weights, fails]", "seeds=[0]") == 0
    states = Counter((row["config"], row["state"]) for row in table())
    assert states == {
        ("good", "finished"): 2, ("error", "failed"): 2, ("fails", "failed"): 2,
        ("late-weights", "refused"): 1, ("late-weights", "missing"): 1,
    }  # fmt: skip
    reasons = {row["config"]: row["reason"] for row in table() if row["reason"]}
    assert "given up after 3 attempts: RuntimeError: no memory" in reasons["error"]
    assert "failed: 'a blue dog', fails, seed 0 (the loss was no longer a number)" in caplog.text


def test_a_lost_worker_is_replaced() -> None:
    method("dies", "trouble: dies once")
    assert command("configs=[dies]", "seeds=[0]", "engine=processes", "workers=1") == 0
    assert {row["state"] for row in table()} == {"finished"}
    assert {line.split()[0]: count for line, count in log().items()} == {"begun": 2, "done": 1}


def test_a_stopped_batch_goes_on() -> None:
    method("stops", "trouble: stops once")
    for _ in range(2):
        assert command("configs=[stops]", "seeds=[0]") == 130 and not Path("run/gallery.html").exists()
    assert command("configs=[stops]", "seeds=[0]") == 0 and len(table()) == 2


def test_real_runs_are_on_the_page() -> None:
    """A tiny prior and runs of a second."""
    tiny_generate(Path())
    Path("prompts.txt").write_text("a red dog\n")
    assert command("configs=[tiny.yaml, tiny.yaml size=8]", "seeds=[3]", "overrides=[result.fps=9]") == 0
    page = Path("run/gallery.html").read_text()
    assert page.count('class="card"') == 2 and "tiny.yaml result.fps=9 size=8" in page and "seed 3" in page
    assert all(f"./{row['folder']}/report.html" in page for row in table())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["prompts="], "prompts: is missing; say which file, such as prompts=prompts.txt"),
        (["prompts=no.txt"], "prompts: no.txt is missing"),
        (["prompts=log.txt"], "prompts: should have a prompt in each line, and is empty"),
        (["configs=[godo]"], "configs: godo: config: no file"),
        (["configs=[toybox-sheet]"], "makes an object of a prompt"),
        (["configs=[good, good]"], "configs should name each one once (got 'good' twice)"),
        (["overrides=[seed=3]"], "overrides: seed is set by the batch itself"),
        (["address=auto"], "address belongs to engine=ray"),
    ],
)
def test_mistakes_are_said_before_any_work(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("log.txt").write_text("\n")
    assert command(*more) == 2 and said in capsys.readouterr().err and not Path("run").exists()


def test_every_prompt_is_looked_at_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a nebula\na blue dog\njustice\nlove\npeace\nhope\n")
    methods = "configs=[sds-toybox, mvdream-toybox]"
    assert command(methods) == 2 and not Path("run").exists()
    said = capsys.readouterr().err
    assert said.startswith("prompts: sds-toybox: ")
    assert "(got 'a nebula'); so do 'justice' and 'love' and 2 more\n" in said
    load("batch", ["prompts=prompts.txt", methods, "overrides=[prompt_check=off]"]).check()


def test_a_dry_run_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("configs=[good]", "--dry-run") == 0 and not Path("run").exists()
    assert "\nmakes: 2 prompts x 1 config x 2 seeds = 4 objects in run\n" in capsys.readouterr().out
    assert cli.main(["--config", "batch", "prompts=prompts.txt", "configs=[good]", "--dry-run", "threads=1"]) == 0
    assert "x 1 seed = 2 objects in outputs/batch/run\n" in capsys.readouterr().out and not Path("outputs").exists()


def test_a_job_is_named_by_what_it_is_however_it_was_asked() -> None:
    Path("prompts.txt").write_text("a blue dog\n")
    one = plan(load("batch", ["prompts=prompts.txt", "configs=[sds-toybox]", "overrides=[trainer.max_steps=7]"]))
    two = plan(load("batch", ["prompts=prompts.txt", "configs=[sds-toybox trainer.max_steps=7]", "workers=9"]))
    assert [job.key for job in one] == [job.key for job in two] and one[0].config.export.enabled
