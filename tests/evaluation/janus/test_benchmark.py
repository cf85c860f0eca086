import csv
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.support import janus_stub
from tests.support.janus_bench import log, method, report, stub, table, words  # noqa: F401
from threedgen import cli
from threedgen.config import load
from threedgen.evaluation.janus import benchmark
from threedgen.evaluation.janus.options import JanusBenchmarkConfig, prompts_of
from threedgen.evaluation.janus.report import Result, method_row
from threedgen.export.files.glb import save_glb
from threedgen.geometry.images import write_png

SCORE = "task: janus-score\nmeter: {classifier: {name: stub}, size: 24}\n"


def test_benchmark_counts_and_reports(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert cli.main(words("prompts=[a blue dog, a red ball, a red car]")) == 0
    assert "'a red ball'" in caplog.text and capsys.readouterr().out.strip() == "run/report.html"
    good, bad = report()["methods"]
    assert (good["method"], good["raw"]["hits"], good["raw"]["total"]) == ("good", 0, 4)
    assert good["corrected"] == {"share": None, "low": None, "high": None}
    assert (bad["raw"]["hits"], bad["raw"]["total"]) == (4, 4) and bad["raw"]["low"] == pytest.approx(0.3424, abs=1e-3)
    assert good["right"]["share"] == 1 and bad["right"]["hits"] == 4 * 5
    assert good["match"] == bad["match"] and good["match"]["hits"] == 2  # all look like the first prompt
    assert good["seconds"] is not None and good["memory_mib"] > 1 and good["states"] == {"seen": 4}
    assert list(report()["left_out"]) == ["a red ball"] and report()["prompts"] == ["a blue dog", "a red car"]
    less = report()["differences"]["bad"]
    assert (less["raw"]["mean"], less["match"]["mean"], good["likeness"]["mean"]) == (-1, 0, 1.5)
    with open("run/report-methods.csv") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert table["bad"]["raw.share"] == "1.0" and float(table["bad"]["raw.low"]) == bad["raw"]["low"]
    assert len(Path("run/report-assets.csv").read_text().splitlines()) == 9
    assert len(log()) == 16 and set(log().values()) == {1} and len(list(Path("run/runs").iterdir())) == 8
    assets = report()["assets"]
    assert len(assets) == 8 and {one["fronts"] for one in assets if one["method"] == "bad"} == {2}
    page = Path("run/report.html").read_text()
    assert page.count("data:image/jpeg") == 8 and not re.search(r"(src|href)=\"(?!data:)", page)


def test_rate_is_corrected_by_errors_that_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("truth").mkdir()
    for name in "abcdefghij":
        save_glb(janus_stub.box(1), Path("truth") / f"{name}.glb")
    assert cli.main(words("truth.assets=truth", "truth.objects=5")) == 0
    good, bad = report()["methods"]
    assert (report()["errors"]["recall"]["hits"], report()["errors"]["recall"]["total"]) == (5, 5)
    assert good["corrected"]["share"] == 0 and bad["corrected"]["share"] == 1
    assert 0 < good["corrected"]["high"] < 1 and 0 < bad["corrected"]["low"] < 1
    assert "100.0 % (5/5; 56.6 - 100.0 %)" in Path("run/report.html").read_text()
    monkeypatch.setattr(benchmark, "MeterErrors", lambda *args: pytest.fail("errors are measured again"))
    assert cli.main(words("truth.assets=truth", "truth.objects=5")) == 0


def test_methods_that_cannot_run_have_a_row_with_the_reason() -> None:
    for trouble in ("weights", "late weights", "fails", "empty", "damaged", "error"):
        method(trouble.replace(" ", "-"), f"trouble: {trouble}")
    assert cli.main(words(methods="[weights, good, late-weights, fails, empty, damaged, error]")) == 0
    rows = {row["method"]: row for row in report()["methods"]}
    assert list(rows)[0] == "weights" and rows["good"]["raw"]["total"] == 4 and rows["damaged"]["raw"]["total"] == 0
    states = {name: row["states"] for name, row in rows.items()}
    assert states == {
        "weights": {}, "good": {"seen": 4}, "late-weights": {"missing": 4}, "fails": {"failed": 4},
        "empty": {"empty": 4}, "damaged": {"unreadable": 4}, "error": {"failed": 4},
    }  # fmt: skip
    reasons = {"weights": "sd.ckpt", "late-weights": "hub", "damaged": "mesh.glb", "error": "RuntimeError"}
    for name, value in reasons.items():
        assert value in rows[name]["reason"] and value in Path("run/report.md").read_text()
    started = Counter(line.split()[1].rpartition("-a-")[0] for line in log().elements() if line.startswith("started"))
    assert started["error"] == 12 and started["late-weights"] == 1 and started["fails"] == 4


@pytest.mark.parametrize(
    ("more", "values"),
    [
        (["methods=[toybox-sheet]"], ("methods: toybox-sheet",)),
        (["methods=[good, good]"], ("methods", "'good'")),
        (["prompts=[a red ball, a table]"], ("prompts", "a red ball, a table")),
        (["methods=[sds-toybox]", "prompts=[a nebula, a blue dog]"], ("prompts: sds-toybox",)),
        (["methods=[good, good.yaml seed=3]"], ("overrides: seed",)),
        (["address=auto"], ("engine=ray",)),
    ],
)
def test_mistakes_are_found_before_any_work(more: list[str], values: tuple[str, ...], capsys) -> None:
    assert cli.main(words(*more)) == 2
    error = capsys.readouterr().err
    assert all(value in error for value in values), error
    assert not log() and not Path("run").exists()


@pytest.mark.parametrize("name", ["janus-benchmark", "janus-claim"])
def test_shipped_benchmark_has_a_job_of_each_method_prompt_and_seed(name: str) -> None:
    config: JanusBenchmarkConfig = load(name)
    plan = config.plan()
    assert len(plan.prompts) >= 30 and not plan.refused and not plan.left_out and len(config.seeds) >= 3
    assert len({job.key for job in plan.jobs}) == len(plan.prompts) * len(config.methods) * len(config.seeds)
    if name == "janus-claim":  # gives all methods as many images
        configs = [job.config for job in plan.jobs]
        assert {made.trainer.max_steps * made.scenes_per_step * made.camera.n_view for made in configs} == {600}
        assert {made.size for made in configs} == {64}


def test_score_of_mesh_files_names_each_that_is_not_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    for path, fronts in (("ours/a blue dog.glb", 1), ("theirs/a-blue-dog.glb", 2), ("theirs/x.glb", 1)):
        Path("assets", path).parent.mkdir(parents=True, exist_ok=True)
        save_glb(janus_stub.box(fronts), Path("assets", path))
    box = janus_stub.box()
    turned = (30 * box.vertices @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])).astype(np.float32)
    save_glb(replace(box, vertices=turned), Path("assets/theirs/x.glb"))
    Path("assets/theirs/a-cow.obj").write_text("v 0 0 0\n")
    for name in ("a-dog", "a-ball"):  # without a front, whatever their names say
        save_glb(janus_stub.box(0), Path(f"assets/theirs/{name}.glb"))
    Path("assets/other").mkdir()
    trimesh.creation.box(vertex_colors=(255, 0, 0)).export("assets/other/a-fox.ply")
    Path("assets/other/a-cow.obj").write_text("v 0 0 0\n")
    for name in ("a-cat.glb", "a-pig.stl", "a-cow.mtl"):
        Path("assets/other", name).write_bytes(b"\xff\xd8")
    Path("score.yaml").write_text(f"{SCORE}prompts: {{x: a red car}}\n")
    assert cli.main(["--config", "score.yaml", "assets=assets", "out=run"]) == 0
    other, ours, theirs = report()["methods"]
    assert other["states"] == {"seen": 1, "empty": 1, "unreadable": 1} and other["raw"]["total"] == 1
    text = Path("run/report.md").read_text()
    assert all(f"other/{name}" in text for name in ("a-cow.obj", "a-cat.glb", "a-pig.stl")) and "mtl" not in text
    assert (ours["method"], ours["raw"]["hits"], ours["raw"]["total"]) == ("ours", 0, 1)
    assert (theirs["raw"]["hits"], theirs["raw"]["total"], theirs["states"]) == (1, 2, {"seen": 4, "empty": 1})
    assert (theirs["no_front"]["hits"], theirs["no_front"]["total"]) == (2, 4) and theirs["right"]["share"] == 13 / 16
    assert theirs["corrected"]["share"] is None and report()["errors"] is None  # these files are unlike the toybox
    car = next(asset for asset in report()["assets"] if asset["prompt"] == "a red car")
    assert car["fronts"] == 1 and all(car["right"])  # rotated by 90 degrees, which the free orientation ignores
    plain = [asset for asset in report()["assets"] if asset["prompt"] in ("a dog", "a ball")]
    assert [(one["fronts"], one["janus"]) for one in plain] == [(0, False)] * 2 and plain[0]["certainty"] < 0.4
    assert list(report()["left_out"]) == ["other/a-pig.stl"] and "| theirs |" in capsys.readouterr().out
    known = ["assets=assets", "out=known", "orientation=known", "truth.objects=0", "-q"]
    assert cli.main(["--config", "score.yaml", *known]) == 0
    car = next(asset for asset in report(Path("known"))["assets"] if asset["prompt"] == "a red car")
    assert not car["right"][0] and sum(car["right"]) < 4


def test_folders_are_prompts_where_file_names_are_none() -> None:
    prompts = {
        "a/a-red-dog/model.glb": "a red dog", "b/a-big_bear@20230801-101010/save/model.obj": "a big bear",
        "a/a-cow/0.glb": "a cow", "a/a-cow/1.glb": "a cow", "c/seed0/a-cat.glb": "a cat", "c/seed0/a-pig.glb": "a pig",
        "c/seed1/a-cat.glb": "a cat", "c/seed1/a-pig.glb": "a pig", "d/x/a-hen.glb": "a hen", "d/a-hen.glb": "a hen",
        "0.glb": "0", "d/model.glb": "model",
    }  # fmt: skip
    single = {f"{method}/a-red-dog/model.glb": "a red dog" for method in "ab"}
    for one in (prompts, single):
        assert {path.as_posix(): prompt for path, prompt in prompts_of([*map(Path, one)]).items()} == one


def test_captions_describe_single_files() -> None:
    """A z-up box in one folder with y-up boxes, whose front faces another way."""
    for path in ("ours/a-dog.glb", "theirs/x.glb"):
        Path("assets", path).parent.mkdir(parents=True)
        save_glb(janus_stub.box(1), Path("assets", path))
    box = janus_stub.box()  # in a z-up world; a file has its y, z, x
    save_glb(replace(box, vertices=box.vertices[:, [2, 1, 0]] * np.float32([1, -1, 1])), Path("assets/theirs/x.glb"))
    Path("assets/captions.csv").write_text("file,caption,up,turn\ntheirs/x.glb,a cat,z,-90\nlost.glb,a,,\n")
    Path("score.yaml").write_text(SCORE)
    assert cli.main(["--config", "score.yaml", "assets=assets", "orientation=known", "out=run", "-q"]) == 0
    assert [(one["prompt"], all(one["right"])) for one in report()["assets"]] == [("a dog", True), ("a cat", True)]
    assert list(report()["left_out"]) == ["captions.csv, line 3"]


def test_precision_needs_several_prompts() -> None:
    results = [Result("m", "model", None, "", "seen", likeness=(0.3,)) for _ in range(30)]
    assert method_row("m", results, ["model"], None, None)["match"]["total"] == 0


def test_readings_and_errors_follow_textures_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("assets").mkdir()
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
    Path("assets/a-dog.obj").write_text(f"mtllib a.mtl\n{corners}usemtl m\nf 1/1 2/2 3/3\nf 1/1 2/2 4/3\n")
    Path("assets/a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    Path("score.yaml").write_text(SCORE)
    calls: list[int] = []
    real = janus_stub.StubSides.sides
    monkeypatch.setattr(janus_stub.StubSides, "sides", lambda *args: calls.append(1) or real(*args))

    def classified(colour: float, weight: float) -> int:
        """Score the asset; return how often it and the two objects of the errors were classified."""
        write_png(Path("assets/a.png"), np.full((4, 4, 3), colour))
        os.utime("assets/a.png", ns=(0, round(1e9 * colour)))
        network = torch.nn.Linear(1, 1).requires_grad_(False)
        network.weight.fill_(weight)
        network.bias.fill_(0)
        calls.clear()
        monkeypatch.setattr(janus_stub.StubSides, "__init__", lambda self, config: setattr(self, "net", network))
        assert cli.main(["--config", "score.yaml", "assets=assets", "truth.assets=assets", "out=run", "-q"]) == 0
        return len(calls)

    assert [classified(*state) for state in ((0.2, 1), (0.2, 1), (0.9, 1), (0.9, 2))] == [3, 0, 3, 3]


def test_seeds_of_a_prompt_are_not_independent() -> None:
    prompts = [f"a dog {k}" for k in range(8)]
    results = [
        Result("m", prompt, seed, "", "seen", "", 1 + k % 2, 0.9, (), (k % 2 == 0,), (), tuple(np.eye(8)[k // 2 * 2]))
        for k, prompt in enumerate(prompts)
        for seed in range(3)
    ]
    row = method_row("m", results, prompts, None, None)
    one = method_row("m", results[::3], prompts, None, None)
    for key in ("raw", "match", "right"):
        assert (row[key]["hits"], row[key]["total"], one[key]["total"]) == (12, 24, 8)
        assert row[key]["high"] - row[key]["low"] > 0.9 * (one[key]["high"] - one[key]["low"])
    assert row["no_front"]["high"] == one["no_front"]["high"] > 0.3
