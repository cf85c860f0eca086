import csv
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import trimesh

from tests.support.janus_bench import log, method, stub  # noqa: F401
from tests.support.task_server import tiny_generate
from threedgen import cli
from threedgen.config import load
from threedgen.run.folder import open_run
from threedgen.systems.batch import jobs
from threedgen.systems.batch.jobs import plan


def command(*more: str) -> int:
    if not Path("prompts.txt").exists():
        Path("prompts.txt").write_text("\ufeffa blue dog\n# a remark\n\n  a red   car\na blue dog\n")
    words = ["prompts=prompts.txt", "seeds=[0, 1]", "configs=[good, bad fronts=1]", "out=run", "threads=1", "-q"]
    return cli.main(["--config", "batch", *words, *more])


def table() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("run/batch.csv").open()))


def test_batch_runs_each_job_in_its_own_folder_and_only_missing_ones(capsys, caplog) -> None:
    assert command() == 0 and capsys.readouterr().out.strip() == "run/gallery.html"
    rows = table()
    assert len(rows) == len({row["folder"] for row in rows}) == 8 and {row["state"] for row in rows} == {"finished"}
    assert {row["prompt"] for row in rows} == {"a blue dog", "a red car"} and len(log()) == 16
    assert all((Path("run") / row["folder"] / "mesh.glb").exists() for row in rows)
    record = json.loads((Path("run") / rows[1]["folder"] / "job.json").read_text())
    assert (record["state"], record["method"]) == ("finished", "bad fronts=1")
    assert json.loads(Path("run/summary.json").read_text())["states"] == {"finished": 8}
    summary = Path("run") / rows[0]["folder"] / "summary.json"
    tree = json.loads(summary.read_text().replace('"sha256": "', '"sha256": "0'))  # made by other code of the task
    summary.write_text(json.dumps(tree | {"metrics": {"mine": 0.5}}))
    with Path("prompts.txt").open("a") as file:
        file.write("a green frog\n")
    assert command() == 0 and set(log().values()) == {1} and len(table()) == 12
    assert Counter(row["metrics.mine"] for row in table()) == {"0.5": 1, "": 11}
    assert [record.args[0] for record in caplog.records if "janus_stub.py" in record.getMessage()] == [1]
    more = ["seeds=[0, 1, 2]", "configs=[good, bad fronts=1, bad]", "strict=true"]
    assert command(*more) == 0 and len(table()) == 27
    assert command(*more, "overrides=[fronts=1]") == 2


def test_added_jobs_share_the_default_folder() -> None:
    def folder(*more: str) -> Path:
        return Path(open_run(load("batch", ["prompts=prompts.txt", *more]), "batch")[0].out)

    first = folder("configs=[good]")
    (first / "batch.csv").touch()
    assert folder("configs=[good, bad]", "seeds=[0, 1]", "atlas=true", "strict=true") == first
    assert folder("configs=[good]", "style=teal") != first


def test_failed_jobs_are_listed(caplog: pytest.LogCaptureFixture) -> None:
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


def test_stopped_batch_continues() -> None:
    method("stops", "trouble: stops once")
    for _ in range(2):
        assert command("configs=[stops]", "seeds=[0]") == 130 and not Path("run/gallery.html").exists()
    assert command("configs=[stops]", "seeds=[0]") == 0 and len(table()) == 2


def test_style_and_atlas_of_real_runs() -> None:
    tiny_generate(Path())
    Path("prompts.txt").write_text("a red dog\na blue car\n")
    exported = "export.enabled=true export.budget=300 export.texture=64 export.resolution=32 export.refine=0"
    assert command(f"configs=[tiny.yaml {exported}]", "seeds=[3]", "style=teal,#fff", "atlas=true") == 0
    folders = [row["folder"] for row in table()]
    for folder in folders:
        assert json.loads(Path(f"run/{folder}/asset/asset.json").read_text())["palette"] == ["#008080", "#ffffff"]
        assert load(Path(f"run/{folder}/config.yaml")).trainer.devices == 1
    assert "set.glb" in Path("run/gallery.html").read_text()
    scene = trimesh.load_scene("run/set.glb")
    assert set(scene.graph.nodes_geometry) == {Path(folder).name for folder in folders}


@pytest.mark.parametrize(
    ("more", "values"),
    [
        (["prompts="], ("prompts: ", "prompts.txt")),
        (["prompts=log.txt"], ("prompts: ", "log.txt")),
        (["prompts=library.json"], ("prompts: ", "JSON", "library.json")),
        (["configs=[godo]"], ("configs: ", "godo")),
        (["configs=[toybox-sheet]"], ("configs: ", "toybox-sheet")),
        (["configs=[good, good]"], ("configs", "'good'")),
        (["overrides=[seed=3]"], ("overrides: ", "seed")),
        (["style=brown"], ("style: ", "good")),  # without an asset
        (["atlas=true"], ("atlas: ", "good")),
        (["configs=[quick-toybox]", "atlas=true", 'overrides=["export.formats=[obj]"]'], ("atlas: ", "[glb]")),
        (["configs=[quick-toybox]", "style=red", "overrides=[export.enabled=false]"], ("style: ", "enabled=true")),
    ],
)
def test_bad_options_are_refused(more: list[str], values: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("log.txt").write_text("\n")
    Path("library.json").write_text('{\n  "dreamfusion": [\n    "a red dog",\n    "a blue dog"\n  ]\n}\n')
    code, err = command(*more), capsys.readouterr().err
    assert code == 2 and all(value in err for value in values) and not Path("run").exists(), err


def test_wrong_prompts_are_skipped_and_reported(caplog, monkeypatch) -> None:
    def unknown(methods: dict[str, object], prompts: list[str]) -> dict[tuple[str, str], str]:
        wrong = [prompt for prompt in prompts if prompt in ("a nebula", "justice")]
        return {(method, prompt): f"no known noun in {prompt!r}" for method in methods for prompt in wrong}

    monkeypatch.setattr(jobs, "unknown_objects", unknown)
    Path("prompts.txt").write_text("a nebula\na red dog\n")
    assert command("configs=[good]", "strict=true") == 2 and not Path("run").exists()
    assert command("configs=[good]", "seeds=[0]") == 0
    states = {row["prompt"]: (row["state"], row["reason"]) for row in table()}
    assert states == {"a red dog": ("finished", ""), "a nebula": ("skipped", "no known noun in 'a nebula'")}
    lines = [line for line in caplog.text.splitlines() if "skipped: 'a nebula'" in line]
    assert len(lines) == 2, "before and after the work"
    Path("prompts.txt").write_text("a nebula\njustice\n")
    assert command("configs=[good]", "seeds=[0]", "out=other") == 2 and not Path("other").exists()


def test_job_can_be_pickled_and_its_key_depends_on_the_config_alone() -> None:
    Path("prompts.txt").write_text("a blue dog\n")
    one = plan(load("batch", ["prompts=prompts.txt", "configs=[sds-toybox]", "overrides=[trainer.max_steps=7]"]))
    two = plan(load("batch", ["prompts=prompts.txt", "configs=[sds-toybox trainer.max_steps=7]", "workers=9"]))
    assert [job.key for job in one] == [job.key for job in two] and one[0].config.export.enabled
    assert pickle.loads(pickle.dumps(one)) == one  # for worker processes
