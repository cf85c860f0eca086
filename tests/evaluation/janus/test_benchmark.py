"""The Janus benchmark with boxes for objects: what is made, by whom, how often, and what the report says."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tests.support import janus_stub
from tests.support.janus_bench import log, method, report, stub, table, words  # noqa: F401
from tests.support.task_server import TINY, prior_folder, write_config
from threedgen import cli
from threedgen.config import load, registry
from threedgen.config import optional as extras
from threedgen.evaluation.janus.benchmark import prompt_of
from threedgen.evaluation.janus.jobs import make_plan
from threedgen.evaluation.janus.options import JanusBenchmarkConfig
from threedgen.export.files.glb import save_glb
from threedgen.run import folder as runs
from threedgen.systems.batch.jobs import words_of

# --- here --------------------------------------------------------------------------------------------------------


def test_a_benchmark_counts_and_reports(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert cli.main(words("prompts=[a blue dog, a red ball, a red car]")) == 0
    assert "'a red ball', for a ball has no front" in caplog.text
    assert capsys.readouterr().out.strip() == "run/report.html"
    good, bad = report()["methods"]
    assert (good["method"], good["raw"]["hits"], good["raw"]["total"]) == ("good", 0, 4)
    assert good["corrected"] == {"share": None, "low": None, "high": None}
    assert (bad["raw"]["hits"], bad["raw"]["total"]) == (4, 4) and bad["raw"]["low"] == pytest.approx(0.5101, abs=1e-3)
    assert good["right"]["share"] == 1 and bad["right"]["hits"] == 4 * 5
    assert good["match"] == bad["match"] and good["match"]["hits"] == 2  # all look like the first prompt
    assert [(row["recognised"]["hits"], row["recognised"]["total"]) for row in (good, bad)] == [(0, 2), (2, 2)]
    assert good["seconds"] is not None and good["memory_mib"] > 1 and good["states"] == {"seen": 4}
    assert len(log()) == 16 and set(log().values()) == {1}

    assert len(list(Path("run/runs").iterdir())) == 8
    lines = list(csv.DictReader(Path("run/assets.csv").open()))
    assert len(lines) == 8 and {line["fronts"] for line in lines if line["method"] == "bad"} == {"2"}
    assert [line["method"] for line in csv.DictReader(Path("run/methods.csv").open())] == ["good", "bad"]
    page = Path("run/report.html").read_text()
    assert page.count("data:image/jpeg") == 8 and page.count("Janus, 2 fronts") == 4 and "front 1.00" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "a red ball" in page
    text = Path("run/report.md").read_text()
    assert "| bad | 100.0 % (4/4) | 51.0 - 100.0 % | - |" in text and "left out: a red ball" in text


def test_what_is_done_is_not_done_again_and_what_was_deleted_is() -> None:
    assert cli.main(words()) == 0
    first = Path("run/report.json").read_bytes()
    assert cli.main(words()) == 0 and set(log().values()) == {1}
    assert Path("run/report.json").read_bytes() == first
    gone = next(Path("run/runs").glob("bad-*"))
    for file in sorted(gone.rglob("*"), reverse=True):
        file.unlink()
    gone.rmdir()
    assert cli.main(words()) == 0
    again = {line: count for line, count in log().items() if count > 1}
    assert again == {f"begun {gone.name}": 2, f"done {gone.name}": 2}


def test_the_rate_is_corrected_by_errors_that_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("truth").mkdir()
    for name in "abcdefghij":
        save_glb(janus_stub.box(1), Path("truth") / f"{name}.glb")
    assert cli.main(words("truth.assets=truth", "truth.objects=5")) == 0
    good, bad = report()["methods"]
    assert (report()["errors"]["recall"]["hits"], report()["errors"]["recall"]["total"]) == (5, 5)
    assert good["corrected"]["share"] == 0 and bad["corrected"]["share"] == 1
    assert 0 < good["corrected"]["high"] < 1 and 0 < bad["corrected"]["low"] < 1
    assert "recall of two fronts glued together 100.0 % (5/5)" in Path("run/report.html").read_text()
    from threedgen.evaluation.janus import benchmark

    monkeypatch.setattr(benchmark, "measure", lambda *args: pytest.fail("once is enough"))
    assert cli.main(words("truth.assets=truth", "truth.objects=5")) == 0


def test_methods_that_cannot_run_have_a_row_that_says_so() -> None:
    for trouble in ("weights", "late weights", "fails", "empty", "damaged", "error"):
        method(trouble.replace(" ", "-"), f"trouble: {trouble}")
    assert cli.main(words(methods="[weights, good, late-weights, fails, empty, damaged, error]")) == 0
    rows = {row["method"]: row for row in report()["methods"]}
    assert rows["good"]["raw"]["total"] == 4 and list(rows)[0] == "weights"
    assert "no file 'sd.ckpt'" in rows["weights"]["reason"] and rows["weights"]["states"] == {}
    assert "no such id" in rows["late-weights"]["reason"] and rows["late-weights"]["states"] == {"missing": 4}
    assert rows["fails"]["states"] == {"failed": 4} and "no longer a number" in rows["fails"]["reason"]
    assert rows["empty"]["states"] == {"empty": 4} and rows["damaged"]["states"] == {"unreadable": 4}
    assert "cannot be read" in rows["damaged"]["reason"] and rows["damaged"]["raw"]["total"] == 0
    assert "after 3 attempts: RuntimeError: no memory" in rows["error"]["reason"]
    assert rows["error"]["states"] == {"failed": 4}
    begun = Counter(line.split()[1].rpartition("-a-")[0] for line in log().elements() if line.startswith("begun"))
    assert begun["error"] == 12 and begun["late-weights"] == 1 and begun["fails"] == 4
    assert "weights: weights: there is no file" in Path("run/report.md").read_text()


def test_an_error_that_does_not_come_again_and_a_stop_are_survived() -> None:
    method("error-once", "trouble: error once")
    assert cli.main(words(methods="[error-once]")) == 0
    assert report()["methods"][0]["states"] == {"seen": 4}
    method("stops", "trouble: stops once")
    for _ in range(4):  # each of the four jobs is stopped once, as by Ctrl-C
        assert cli.main(words("out=two", methods="[stops]")) == 130
    assert not Path("two/report.json").exists()
    assert cli.main(words("out=two", methods="[stops]")) == 0
    counts = Counter(count for line, count in log().items() if line.startswith("begun stops"))
    assert counts == {2: 4} and table(Path("two"))[0]["states"] == {"seen": 4}


@pytest.mark.slow
def test_real_runs_are_made_looked_at_and_left_alone() -> None:
    """A tiny prior and a run of a second: everything in it, everything small."""
    write_config(Path("tiny.yaml"), TINY, prior={"weights": str(prior_folder()), "dtype": "fp32"})
    asked = words("seeds=[3]", "prompts=[a red dog]", methods="[tiny.yaml]")
    assert cli.main(asked) == 0
    (folder,) = Path("run/runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["seed"], summary["prompt"]) == ("finished", 3, "a red dog")
    (row,) = report()["methods"]
    assert row["states"] == ({"seen": 1} if (folder / "mesh.glb").exists() else {"empty": 1})
    assert row["seconds"] > 0 and row["memory_mib"] == pytest.approx(summary["peak_memory_mib"], rel=1e-3)
    made = (folder / "summary.json").stat().st_mtime_ns
    assert cli.main(asked) == 0 and (folder / "summary.json").stat().st_mtime_ns == made


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["methods=[godo]"], "methods: godo: config: no file"),
        (["methods=[mvdream-toibox]"], "did you mean 'mvdream-toybox'"),
        (["methods=[toybox-sheet]"], "makes an object of a prompt"),
        (["methods=[good, good]"], "named once|once"),
        (["methods=[]"], "methods"),
        (["prompts=[a red ball, a table]"], "none of these things has a front (ball, table)"),
        (["methods=[sds-toybox]", "prompts=[a nebula, a blue dog]"], "prompts: sds-toybox: "),
        (["overrides=[seed=3]"], "overrides: seed is set by the benchmark"),
        (["methods=[good, good.yaml seed=3]"], "overrides: seed is set by the benchmark"),
        (["methods=[good fronst=3]"], "did you mean 'fronts'"),
        (["overrides=[secnods=3]"], "did you mean 'seconds'"),
        (["lost_after=100"], "lost_after: unknown key"),
        (["address=auto"], "belongs to engine=ray"),
        (["engine=rya"], "engine"),
        (["meter.classifier.name=prob"], "did you mean 'probe'"),
    ],
)
def test_mistakes_are_said_before_any_work(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(*more)) == 2
    assert re.search(said if "|" in said else re.escape(said), capsys.readouterr().err) and not log()
    assert not Path("run").exists()


def test_a_dry_run_says_how_many_and_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    method("weights", "trouble: weights")
    assert cli.main(words("prompts=[a red car, a red ball]", "--dry-run", methods="[good, weights]")) == 0
    said = capsys.readouterr().out
    assert "\nmakes: 1 prompt x 1 method x 2 seeds = 2 objects in run\n" in said and not Path("run").exists()
    assert "\nnote: left out: 'a red ball', for a ball has no front\n" in said and "left out: weights (" in said


def test_ray_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: module != "ray")
    assert cli.main(words("engine=ray")) == 2
    assert "pip install -e '.[ray]'" in capsys.readouterr().err


def test_the_shipped_benchmark_asks_for_thirty_prompts_and_more() -> None:
    config: JanusBenchmarkConfig = load("janus-benchmark")
    plan = make_plan(config)
    assert len(plan.prompts) >= 30 and not plan.refused and not plan.left_out and len(config.seeds) >= 3
    assert len(plan.jobs) == len(plan.prompts) * len(config.methods) * len(config.seeds)
    assert len({job.key for job in plan.jobs}) == len(plan.jobs)
    assert not any(job.config.export.enabled for job in plan.jobs)
    again = make_plan(load("janus-benchmark", ["threads=1", "workers=4", "engine=processes"]))
    assert [job.key for job in again.jobs] == [job.key for job in plan.jobs]
    other = make_plan(load("janus-benchmark", ["overrides=[trainer.max_steps=150]"]))
    assert not {job.key for job in other.jobs} & {job.key for job in plan.jobs}


def test_the_claim_gives_each_method_changes_of_its_own_and_as_many_pictures() -> None:
    plan = make_plan(load("janus-claim"))
    assert len(plan.prompts) == 30 and len(plan.jobs) == 30 * 3 * 3 and not plan.refused
    shown = {job.config.trainer.max_steps * job.config.scenes_per_step * job.config.camera.n_view for job in plan.jobs}
    assert shown == {600} and {job.config.size for job in plan.jobs} == {64}
    plain = make_plan(load("janus-claim", ["methods=[sds-toybox]", "overrides=[trainer.max_steps=600]"]))
    assert {job.key for job in plain.jobs} < {job.key for job in plan.jobs}  # a job is what it is, however it was asked


def test_methods_may_have_changes_of_their_own() -> None:
    Path("good.yaml").rename("with blanks.yaml")
    asked = ["with blanks.yaml fronts=2", "with blanks.yaml", "bad fronts=1 views={a: 1}"]
    assert [words_of(method) for method in asked] == [
        ["with blanks.yaml", "fronts=2"],
        ["with blanks.yaml"],
        ["bad", "fronts=1", "views={a: 1}"],
    ]
    assert cli.main(words(methods="[with blanks.yaml fronts=2, with blanks.yaml]")) == 0
    assert [(row["method"], row["raw"]["share"]) for row in table()] == [
        ("with blanks.yaml fronts=2", 1.0),
        ("with blanks.yaml", 0.0),
    ]


# --- files of others ---------------------------------------------------------------------------------------------


def test_files_of_others_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    for path, fronts in (("ours/a blue dog.glb", 1), ("theirs/a-blue-dog.glb", 2), ("theirs/x.glb", 1)):
        Path("assets", path).parent.mkdir(parents=True, exist_ok=True)
        save_glb(janus_stub.box(fronts), Path("assets", path))
    box = janus_stub.box()
    turned = (30 * box.vertices @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])).astype(np.float32)
    save_glb(replace(box, vertices=turned), Path("assets/theirs/x.glb"))
    Path("assets/theirs/a-cow.obj").write_text("v 0 0 0\n")
    Path("assets/theirs/a-ball.obj").write_text("v 0 0 0\n")
    Path("score.yaml").write_text(
        "task: janus-score\nmeter: {classifier: {name: stub}, size: 24}\ntruth: {objects: 0}\nprompts: {x: a red car}\n"
    )
    assert cli.main(["--config", "score.yaml", "assets=assets", "out=run"]) == 0
    ours, theirs = report()["methods"]
    assert (ours["method"], ours["raw"]["hits"], ours["raw"]["total"]) == ("ours", 0, 1)
    assert (theirs["raw"]["hits"], theirs["raw"]["total"], theirs["states"]) == (1, 2, {"seen": 2, "empty": 1})
    car = next(asset for asset in report()["assets"] if asset["prompt"] == "a red car")
    assert car["fronts"] == 1 and all(car["right"])  # turned by 90 degrees, which does not count against it
    assert "a ball has no front" in Path("run/report.html").read_text() and "| theirs |" in capsys.readouterr().out
    assert cli.main(["--config", "score.yaml", "assets=assets", "out=known", "orientation=known", "-q"]) == 0
    Path("run").rename("free")
    Path("known").rename("run")
    car = next(asset for asset in report()["assets"] if asset["prompt"] == "a red car")
    assert not car["right"][0] and sum(car["right"]) < 4


def test_what_is_not_seen_of_files_of_others_is_named_one_by_one() -> None:
    """PLY files are looked at; what is not read, empty or damaged has a line each."""
    folder = Path("assets/ours")
    folder.mkdir(parents=True)
    trimesh.creation.box(vertex_colors=(255, 0, 0)).export(str(folder / "a-dog.ply"))
    (folder / "a-cow.obj").write_text("v 0 0 0\n")
    for name in ("a-cat.glb", "a-car.glb", "a-pig.stl", "a-cow.mtl"):
        (folder / name).write_bytes(b"\xff\xd8")
    Path("score.yaml").write_text("task: janus-score\nmeter: {classifier: {name: stub}, size: 24}\n")
    assert cli.main(["--config", "score.yaml", "assets=assets", "truth.objects=0", "out=run", "-q"]) == 0
    (row,) = report()["methods"]
    assert row["states"] == {"seen": 1, "empty": 1, "unreadable": 2} and row["raw"]["total"] == 1
    lines = Path("run/report.md").read_text().splitlines()
    assert "- ours: 1 without anything to see, 2 unreadable" in lines
    assert "- ours: assets/ours/a-cow.obj is empty: it has no triangle with an area" in lines
    for name in ("a-cat.glb", "a-car.glb"):
        said = f"assets/ours/{name} cannot be read as a mesh: it is damaged, or not a GLB file"
        assert f"- ours: {said}" in lines and said in Path("run/report.html").read_text()
    assert "- left out: ours/a-pig.stl (only GLB, glTF, OBJ and PLY files are read)" in lines
    assert not any("mtl" in line for line in lines)
    files = json.loads(Path("run/summary.json").read_text())["files"]
    assert files == ["report.html", "methods.csv", "assets.csv", "report.md", "report.json"]


def test_names_of_files_are_prompts() -> None:
    class Given:
        prompts = {"007": "a spy"}

    for name, prompt in (("a_blue-dog", "a blue dog"), ("007", "a spy"), ("---", "---")):
        assert prompt_of(Path(f"{name}.glb"), Given()) == prompt  # type: ignore[arg-type]


def test_looks_are_kept_until_the_mesh_or_the_meter_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(words()) == 0
    looked: list[int] = []
    real = janus_stub.StubSides.sides
    monkeypatch.setattr(janus_stub.StubSides, "sides", lambda *args: looked.append(1) or real(*args))
    assert cli.main(words()) == 0 and not looked
    mesh = next(Path("run/runs").glob("good-*")) / "mesh.glb"
    save_glb(janus_stub.box(2), mesh)
    assert cli.main(words()) == 0 and len(looked) == 1
    assert report()["methods"][0]["raw"]["hits"] == 1
    assert registry.names("task") and runs.stored_config(Path("run")) is not None
