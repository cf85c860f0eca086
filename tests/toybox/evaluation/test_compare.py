import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.errors import refused
from tests.support.task_server import tiny_generate
from threedgen.toybox.evaluation import compare
from threedgen.toybox.evaluation.options import Compare3DConfig

VARIANTS = ("field.name=ngp distillation.name=sds", "field.name=gaussians distillation.name=csd field.count=60")


def config(tmp_path: Path, probe_file: str, **changes: Any) -> Compare3DConfig:
    values = {
        "task": "compare-3d", "out": str(tmp_path / "run"), "probe": {"weights": probe_file},
        "config": str(tiny_generate(tmp_path / "config")),
        "overrides": ("warm_start.share=0", "refine.strengths=[]", "prompt_check=off"), "variants": VARIANTS,
        "prompts": 2, "steps": 3, "seconds": 1e-6, "threads": 1,
    }  # fmt: skip
    return Compare3DConfig.model_validate(values | changes)


def test_variants_are_compared_at_equal_steps_and_time(tmp_path: Path, probe_file: str) -> None:
    options, folder = config(tmp_path, probe_file), tmp_path / "run"
    options.check()
    assert compare.run(options, quiet=True) == 0
    figures = json.loads((folder / "report.json").read_text())
    first, second = "ngp sds", "gaussians csd 60"
    for budget, step in (("steps", 3), ("time", 1)):
        found = figures[budget]
        assert list(found["variants"]) == [first, second] and list(found["differences"]) == [second]
        assert {row["step"]["mean"] for row in found["variants"].values()} == {step}
        assert all(row["noun"]["total"] == 2 and row["fid"]["mean"] > 0 for row in found["variants"].values())
        objects = {(row["variant"], row["prompt"]): row[budget] for row in figures["objects"]}
        less = [
            objects[second, prompt]["disagreement"] - objects[first, prompt]["disagreement"]
            for prompt in {prompt for _, prompt in objects}
        ]
        assert found["differences"][second]["disagreement"]["mean"] == pytest.approx(sum(less) / 2, rel=1e-3)
        assert found["true objects"]["roughness"]["mean"] > 0 and (folder / f"{budget}.png").is_file()
    assert "difference from ngp sds" in (folder / "report.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in (*folder.glob("runs/*/*"), *folder.glob("measured/*"))}
    assert len(list(folder.glob("runs/*"))) == 4 and len(list(folder.glob("measured/*"))) == 16
    assert compare.run(options, resume=folder, quiet=True) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}, "nothing is made or measured again"


def test_failed_objects_are_wrong_only_where_the_prompt_is_judged(tmp_path: Path, probe_file: str, monkeypatch) -> None:
    monkeypatch.setattr(compare, "make_all", lambda *args: 0)  # makes no object
    options = config(tmp_path, probe_file, prompts=3, variants=VARIANTS[:1], seconds=None)
    assert compare.run(options, quiet=True) == 0
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    (row,) = figures["steps"]["variants"].values()
    assert [row[key]["hits"] for key in compare.JUDGED] == [0] * 5 and row["noun"]["total"] == 3
    assert row["one_front"]["total"] == row["order"]["total"] == 2, "a cactus has no front"


def test_times_are_compared_with_one_run_at_a_time(tmp_path: Path, probe_file: str) -> None:
    with refused("seconds", "engine=here"):
        config(tmp_path, probe_file, engine="processes", workers=2).check()
