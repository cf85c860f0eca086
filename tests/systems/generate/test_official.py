import functools
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.kept_folder import kept_folder
from tests.support.official import NAMES, Kind, official_checkpoint
from tests.support.script_poses import script_poses
from tests.support.small_run import SMALL, small_field
from tests.support.task_server import server
from tests.support.toy_run import log
from threedgen import cli, config
from threedgen.config import ConfigError
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.run.metrics import read_summary
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.system import piecewise_constant

PRIOR = ["prior.tokenizer=clip", "prior.image_size=64"]
WORDS = [
    *PRIOR, *SMALL, *small_field("field", "encoding.per_level_scale=2", "density_blob_scale=20"), "size={0: 8, 5: 16}",
    "scenes_per_step={0: 2, 5: 1}", "preview.steps=2", "trainer.max_steps=10", "trainer.precision=32-true",
]  # fmt: skip
"""Small sizes; steps are divided by 1000."""
SHADING = ["material.ambient_only_steps=5", "loss.orientation={0: 10, 5: 1000}"]


@functools.cache
def folder(kind: Kind) -> Path:
    place = kept_folder()
    official_checkpoint(place, kind)
    return place


@pytest.mark.parametrize("kind", ["sd21", "sd15"])
def test_checkpoint_loads_and_samples(kind: Kind) -> None:
    path = folder(kind) / NAMES[kind]
    prior = MVDream.load(str(path), dtype="fp32", tokenizer=str(folder(kind) / "clip"), image_size=64)
    assert prior.factor == 8 and prior.schedule.prediction == "epsilon"
    views = prior.sample("a dog", script_poses(4), steps=2, generator=torch.Generator().manual_seed(0))
    assert views.shape == (4, 64, 64, 3) and torch.isfinite(views).all() and views.std() > 0


@pytest.mark.parametrize("kind", ["sd21", "sd15"])
def test_dry_run_counts_the_networks(kind: Kind) -> None:
    path = str(folder(kind) / NAMES[kind])
    found = meta_networks(path)
    prior = MVDream.load(path, dtype="fp32", tokenizer=str(folder(kind) / "clip"), image_size=64)
    for seen, loaded in ((found.unet, prior.unet), (found.vae, prior.vae)):
        shapes = {name: tensor.shape for name, tensor in seen.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in loaded.state_dict().items()}
    prior.free_text_encoder()
    assert found.kept == sum(p.numel() for network in prior.networks.values() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("mvdream-sd21", "sd21", []),
        ("mvdream-sd21-shading", "sd21", SHADING),
        pytest.param("mvdream-sd15", "sd15", [], marks=pytest.mark.slow),  # another file for the same config
    ],
)
def test_config_runs_to_a_mesh(name: str, kind: Kind, more: list[str]) -> None:
    """The checkpoint is in the working directory under its released name."""
    place, run = folder(kind), folder(kind) / name
    words = ["--config", name, "prompt=a dog", f"out={name}", *WORDS, *more]
    assert server().run(place, words=words) == 0, log(place)
    summary = read_summary(run)
    assert summary["status"] == "finished" and summary["steps"] == 10 and summary["triangles"] > 10
    assert all((run / file).stat().st_size > 100 for file in ("mesh.glb", "turntable.mp4", "views.png"))
    with Image.open(run / "preview.png") as image:
        assert image.size == (4 * 64 + 5 * 2, 64 + 2 * 2)
    content = (place / NAMES[kind]).read_bytes()
    digest, output = hashlib.sha256(content).hexdigest(), log(place)
    assert f"weights: {NAMES[kind]} ({len(content) / 1e9:.2f} GB, SHA-256 {digest})" in output
    assert output.index(digest) < output.index("distilling at 8 px"), "before anything else"


def test_preview_config_samples_four_views() -> None:
    words = ["--config", "preview-mvdream-sd21", "prompt=a dog", "out=seen", "steps=2", *PRIOR, *SMALL[:2]]
    assert server().run(folder("sd21"), words=words) == 0, log(folder("sd21"))
    with Image.open(folder("sd21") / "seen" / "views.png") as image:
        assert image.size == (4 * 64 + 5 * 2, 64 + 2 * 2)


# ---------------------------------------------------------------- differences between configs


def loaded(name: str) -> Any:
    return config.load(name, ["prompt=a"])


def test_shading_config_adds_light_normals_and_orientation() -> None:
    """MVDream-threestudio's configs/mvdream-sd21-shading.yaml against its mvdream-sd21.yaml"""
    plain, lit = (loaded(name).model_dump() for name in ("mvdream-sd21", "mvdream-sd21-shading"))
    assert {key for key in plain if plain[key] != lit[key]} == {"about", "material", "loss"}
    weights = [config.at(lit["loss"]["orientation"], step, 10_000) for step in (0, 2500, 5000, 9999)]
    assert weights == [10, 505, 1000, 1000]


def test_sd21_schedules() -> None:
    made: GenerateConfig = loaded("mvdream-sd21")
    for name, values in (("min", [0.98, 0.5, 0.02]), ("max", [0.98, 0.74, 0.5])):
        schedule = getattr(made.distillation, f"{name}_step_percent")
        assert [config.at(schedule, s, made.trainer.max_steps) for s in (0, 4000, 9000)] == pytest.approx(values)
    assert [piecewise_constant(made.size, s, 10_000) for s in (0, 4999, 5000, 9999)] == [64, 64, 256, 256]
    assert [piecewise_constant(made.scenes_per_step, s, 10_000) for s in (0, 4999, 5000)] == [2, 2, 1]


def test_sd15_config_differs_only_in_the_weights() -> None:
    plain, other = (loaded(name).model_dump() for name in ("mvdream-sd21", "mvdream-sd15"))
    assert {key for key in plain if plain[key] != other[key]} == {"about", "needs", "prior"}
    assert other["prior"] == plain["prior"] | {"weights": NAMES["sd15"]}


# ---------------------------------------------------------------- what is wrong with a file


def test_weights_without_a_network_are_refused(tmp_path: Path) -> None:
    path = official_checkpoint(tmp_path, "sd21")
    torch.save({n: t for n, t in torch.load(path).items() if not n.startswith("first_stage")}, path)
    with pytest.raises(ConfigError, match="no tensor named first_stage_model"):
        MVDream.load(str(path), tokenizer=str(tmp_path / "clip"))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ([], "prior.tokenizer: this checkpoint holds no tokenizer, and openai/clip-vit"),
        (["prior.tokenizer=empty"], "prior.tokenizer: empty holds no tokenizer"),
        (["prior.tokenizer=nowhere"], "prior.tokenizer: there is no folder 'nowhere'"),
    ],
)
def test_missing_tokenizer_is_refused_before_the_weights(tokenizer, expected, tmp_path, monkeypatch, capsys) -> None:
    """The weights are neither hashed nor read, and no folder is left."""
    read: list[Path] = []
    monkeypatch.setattr("threedgen.guidance.weights.files.sha256", lambda path: read.append(path) or "")
    monkeypatch.setattr("threedgen.guidance.weights.files.read_tensors", lambda path, *more: read.append(path) or {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    words = ["--config", "mvdream-sd21", "prompt=a dog", f"prior.weights={folder('sd21') / NAMES['sd21']}", "out=run"]
    for more in ([], ["--dry-run"]):
        assert cli.main([*words, *tokenizer, *more]) == 2
        assert capsys.readouterr().err.startswith(expected)
    assert read == [] and not (tmp_path / "run").exists()


def test_missing_tensors_are_counted_and_named(tmp_path: Path) -> None:
    path, layers = official_checkpoint(tmp_path, "sd21"), "model.diffusion_model.middle_block.0.in_layers"
    gone = {f"{layers}.{k}.{end}" for k in (0, 2) for end in ("weight", "bias")}
    torch.save({name: tensor for name, tensor in torch.load(path).items() if name not in gone}, path)
    with pytest.raises(ConfigError, match="4 tensors differ") as caught:
        MVDream.load(str(path), tokenizer=str(tmp_path / "clip"))
    assert "'mid_block.resnets.0." in str(caught.value) and "\n" not in str(caught.value)
