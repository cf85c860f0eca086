"""Configs with 3D Gaussians: each runs to a mesh, a PLY and a GLB file; runs that start from another run or a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from tests.support.errors import refused
from tests.support.marks import unix
from tests.support.small_run import SMALL
from tests.support.task_server import prior_folder, server, tiny_generate, weights
from tests.support.tiny_methods import folders
from tests.support.toy_run import log
from tests.systems.generate.test_official import PRIOR, folder
from threedgen.config import load
from threedgen.run.metrics import read_summary

FEW = ["field.count=60", "field.max_count=90", "field.interval=4", "field.opacity=0.6", "size=12", "preview.steps=2"]
WORDS = [*SMALL, *FEW, "trainer.max_steps=20", "trainer.precision=32-true"]
STAGE = ["stages.coarse.trainer.max_steps=20", "stages.coarse.size=12", "stages.coarse.field.lr_means=0.001"]


def run(place: Path, *words: str) -> dict[str, Any]:
    assert server().run(place, words=[*words, "prompt=a red dog", "out=run"]) == 0, log(place)
    return read_summary(place / "run")


@unix
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gaussians-toybox", []),
        ("dreamgaussian-sd21", STAGE),
        ("luciddreamer-sd21", ["scenes_per_step=1", "field.sphere=0.8"]),
        ("mvdream-gaussians-sd21", [*PRIOR]),
    ],
)
def test_config_runs_to_splats_and_a_mesh(name: str, more: list[str], tmp_path: Path) -> None:
    source = prior_folder() if name == "gaussians-toybox" else folders() / "sd"
    if name == "mvdream-gaussians-sd21":
        source = folder("sd21") / "sd-v2.1-base-4view.pt"
        more = [*more, f"prior.tokenizer={folder('sd21') / 'clip'}"]
    summary = run(tmp_path, "--config", name, *WORDS, f"prior.weights={source}", *more)
    assert (summary["status"], summary["steps"]) == ("finished", 20) and summary["triangles"] > 10
    made = weights(tmp_path / "run")
    count = len(made["field.means"])
    assert summary["gaussians"] == count == len(trimesh.load(tmp_path / "run" / "gaussians.ply").vertices)  # type: ignore[union-attr]
    assert (tmp_path / "run" / "gaussians.glb").stat().st_size > 100
    if name == "dreamgaussian-sd21":  # the second stage changes nothing but colours
        before = weights(tmp_path / "run" / "stages" / "coarse")
        same = {key for key in made if key.startswith("field.") and bool((made[key] == before[key]).all())}
        assert {"field.means", "field.log_scales", "field.quaternions", "field.opacity_logits"} <= same
        assert "field.features" not in same


def test_configs_for_released_weights_select_their_loss() -> None:
    losses = {"dreamgaussian-sd21": "reconstruction", "luciddreamer-sd21": "ism", "mvdream-gaussians-sd21": "sds"}
    for name, loss in losses.items():
        made = load(name, ["prompt=a"])
        assert made.field.name == "gaussians" and made.distillation.name == loss
        assert made.trainer.precision == "32-true", "a loss scale would change the threshold of the densification"
    assert load("dreamgaussian-sd21", ["prompt=a"]).stage("coarse").distillation.name == "sds"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["field.name=ngp", "result.exporters=[splats]"], "result.exporters=[]"),
        (["field.name=gaussians", "field.densify=adaptive", "trainer.precision=16-mixed"], "field.densify=mcmc"),
        (["field.name=gaussians", "material.name=diffuse"], "needs normals"),
        (["field.name=gaussians", "field.max_count=10"], "max_count=4000"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], named: str) -> None:
    with refused(None, named):
        load("mvdream-toybox", [*words, "prompt=a dog"])


@unix
def test_run_starts_from_a_run_and_from_a_file(tmp_path: Path) -> None:
    """First a field of another representation, then a point cloud."""
    short = ["warm_start.share=0", "refine.strengths=[]", "preview.enabled=false", "export.enabled=false"]
    first = str(tiny_generate(tmp_path / "one", field={"name": "ngp", "density_blob_scale": 20}))
    assert server().run(tmp_path, words=["--config", first, *short, "trainer.max_steps=2", "out=first"]) == 0, log(
        tmp_path
    )
    points = 0.3 * np.random.default_rng(0).standard_normal((25, 3)).clip(-1.5, 1.5)
    trimesh.PointCloud(points).export(tmp_path / "points.ply")
    second = str(
        tiny_generate(tmp_path / "two", field={"name": "gaussians", "count": 40, "densify": "none", "sphere": 0.01})
    )
    for start, count in (("first", 40), ("points.ply", 25)):
        words = ["--config", second, *short, "trainer.max_steps=2", f"start={start}", f"out=from-{count}"]
        assert server().run(tmp_path, words=words) == 0, log(tmp_path)
        means = weights(tmp_path / f"from-{count}")["field.means"]
        assert len(means) == count and float(means.norm(dim=-1).max()) > 0.1, "not in the small ball of a new object"


def test_unusable_starts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.ply").write_text("ply")
    for field, start, named in (("ngp", "points.ply", "gaussians"), ("gaussians", "nowhere", "config.yaml")):
        made = load("mvdream-toybox", [f"field.name={field}", f"start={start}", "prompt=a dog"])
        with refused("start", named):
            made.check()
