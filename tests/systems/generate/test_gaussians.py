from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from tests.support.small_run import SMALL, small_field
from tests.support.task_server import prior_folder, server, tiny_generate, weights
from tests.support.tiny_methods import folders
from tests.support.toy_run import log
from threedgen.run.metrics import read_summary

FEW = ["field.count=60", "field.max_count=90", "field.interval=4", "field.opacity=0.6"]
WORDS = [*SMALL, "size=12", "preview.steps=2", "trainer.max_steps=20", "trainer.precision=32-true"]
STAGE = [f"stages.coarse.{word}" for word in (*FEW, "trainer.max_steps=20", "size=12", "field.lr_means=0.001")]
MESH = [*small_field("field.paint", "encoding.per_level_scale=2"), "field.resolution=12", "refine.groups=2"]


def run(place: Path, *words: str) -> dict[str, Any]:
    assert server().run(place, words=[*words, "prompt=a red dog", "out=run"]) == 0, log(place)
    return read_summary(place / "run")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gaussians-toybox", FEW),
        ("dreamgaussian-sd21", [*STAGE, *MESH]),
        ("luciddreamer-sd21", [*FEW, "scenes_per_step=1", "field.sphere=0.8"]),
    ],
)
def test_config_runs_to_splats_and_a_mesh(name: str, more: list[str], tmp_path: Path) -> None:
    source = prior_folder() if name == "gaussians-toybox" else folders() / "sd"
    summary = run(tmp_path, "--config", name, *WORDS, f"prior.weights={source}", *more)
    assert (summary["status"], summary["steps"]) == ("finished", 20) and summary["triangles"] > 10
    place = tmp_path / "run"
    if name == "dreamgaussian-sd21":
        place = place / "stages" / "coarse"
        mesh = weights(tmp_path / "run")
        assert float(mesh["field.deformation"].abs().max()) == 0, "the second stage changes nothing but colours"
        assert read_summary(place)["steps"] == 20
    count = len(weights(place)["field.means"])
    assert read_summary(place)["gaussians"] == count == len(trimesh.load(place / "gaussians.ply").vertices)  # type: ignore[union-attr]
    assert (place / "gaussians.glb").stat().st_size > 100


def test_run_starts_from_a_run_and_from_a_file(tmp_path: Path) -> None:
    """First a field of another representation, then a point cloud."""
    short = ["warm_start.share=0", "refine.strengths=[]", "preview.enabled=false", "export.enabled=false"]
    short += ["trainer.max_steps=2"]
    first = str(tiny_generate(tmp_path / "one", field={"name": "ngp", "density_blob_scale": 20}))
    assert server().run(tmp_path, words=["--config", first, *short, "out=first"]) == 0, log(tmp_path)
    points = 0.3 * np.random.default_rng(0).standard_normal((25, 3)).clip(-1.5, 1.5)
    trimesh.PointCloud(points).export(tmp_path / "points.ply")
    field = {"name": "gaussians", "count": 40, "densify": "none", "sphere": 0.01}
    second = str(tiny_generate(tmp_path / "two", field=field))
    for start, count in (("first", 40), ("points.ply", 25)):
        words = ["--config", second, *short, f"start={start}", f"out=from-{count}"]
        assert server().run(tmp_path, words=words) == 0, log(tmp_path)
        means = weights(tmp_path / f"from-{count}")["field.means"]
        assert len(means) == count and float(means.norm(dim=-1).max()) > 0.1, "not in the small ball of a new object"
