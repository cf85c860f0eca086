from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support.errors import refused
from tests.support.small_run import SMALL, small_field
from tests.support.task_server import TINY, server, write_config
from tests.support.tiny_imagedream import imagedream_file
from tests.support.tiny_mvadapter import GEOMETRY, tiny_prior_config
from tests.support.toy_run import log
from threedgen import cli
from threedgen.config import ConfigError, load
from threedgen.run.metrics import read_summary
from threedgen.systems.generate.views import view_cameras

SHORT = {"trainer": TINY["trainer"] | {"max_steps": 2}, "warm_start": {"share": 0}, "refine": {"strengths": []}}
WAYS: dict[str, dict[str, Any]] = {
    "reconstruction": {},  # with a warm start from its views, and views that it draws again
    "sds": SHORT,  # these with a reference image
    "vsd": SHORT,
    "ism": SHORT,
    "jsd": SHORT,
}


def reference_image(path: Path) -> str:
    pixels = np.full((24, 32, 3), 255, np.uint8)
    pixels[6:18, 8:28] = (200, 30, 30)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("name", WAYS)
def test_distillation_runs_with_an_adapter(name: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {} if name == "reconstruction" else {"image": reference_image(tmp_path / "car.png")}
    prior = tiny_prior_config(tmp_path / "prior", **more)
    write_config(tmp_path / "tiny.yaml", TINY | WAYS[name], prior=prior, distillation={"name": name})
    assert server().run(tmp_path, words=["--config", "tiny.yaml", "out=run"]) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and (tmp_path / "run" / "mesh.glb").exists()
    assert (tmp_path / "run" / "preview.png").exists()


def test_geometry_adapter_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", TINY, prior=tiny_prior_config(tmp_path / "prior", GEOMETRY))
    assert cli.main(["--config", "tiny.yaml", "--dry-run"]) == 0
    assert "memory: about" in capsys.readouterr().out
    assert cli.main(["--config", "tiny.yaml", "out=run"]) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert "adapter: " in output and "geometry" in output and "ray" in output, output


def test_resume_refuses_another_adapter(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    prior = tiny_prior_config(tmp_path / "prior")
    write_config(tmp_path / "tiny.yaml", TINY | SHORT, prior=prior)
    assert cli.main(["--config", "tiny.yaml", "--dry-run"]) == 0
    named = capsys.readouterr().out
    assert f"weights: {prior['weights']} (" in named and f"adapter: {prior['adapter']} (" in named
    assert cli.main(["--config", "tiny.yaml", "out=run"]) == 0
    halve(Path(prior["adapter"]))
    capsys.readouterr()
    assert cli.main(["--resume", "run", "trainer.max_steps=3"]) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert output.startswith("prior.adapter: ") and "other weights (SHA-256" in output


def halve(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        card = opened.metadata()
        tensors = {name: opened.get_tensor(name) / 2 for name in opened.keys()}  # noqa: SIM118  no dict
    save_file(tensors, file, card)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["prior.image=none.png"], ("prior.image: ", "none.png")),
        (["prior.image=white.png"], ("prior.image: ", "white.png")),
        (["prior.image=white.png", "prior.matte=none"], ("prior.matte: ", "none")),
        (["prior.image=car.png", "prior.adapter=null"], ("prior: ", "image", "adapter=")),
    ],
)
def test_unused_reference_image_is_refused(tmp_path, monkeypatch, capsys, words, values) -> None:
    monkeypatch.chdir(tmp_path)
    reference_image(tmp_path / "car.png")
    Image.new("RGB", (8, 8), "white").save("white.png")
    write_config(tmp_path / "tiny.yaml", TINY, prior=tiny_prior_config(tmp_path / "prior"))
    assert cli.main(["--config", "tiny.yaml", *words, "out=run"]) == 2
    output = capsys.readouterr().err
    assert all(value in output for value in values), output


WORDS = [
    "image=car.png", "out=run", *SMALL, *small_field("field", "encoding.per_level_scale=2", "density_blob_scale=20"),
    "preview.steps=2", "trainer.precision=32-true", "trainer.max_steps=20",
]  # fmt: skip


@pytest.mark.parametrize("config", ["imagedream-sd21", "image-to-3d-sdxl"])
def test_image_becomes_a_mesh(config: str, tmp_path: Path) -> None:
    reference_image(tmp_path / "car.png")
    if config == "imagedream-sd21":
        imagedream_file(tmp_path)  # found by its name
        words = ["prior.tokenizer=clip", "prior.image_size=16", "size=8", "material.ambient_only_steps=5"]
        words += ["loss.orientation={0: 10, 10: 1000}", "scenes_per_step={0: 2, 10: 1}"]
    else:
        files = tiny_prior_config(tmp_path / "prior")
        words = ["prior.image_size=null", "prompt=a red dog"]
        words += [f"prior.{key}={files[key]}" for key in ("weights", "adapter")]
    assert server().run(tmp_path, words=["--config", config, *WORDS, *words]) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("finished", 20) and summary["triangles"] > 10
    assert (tmp_path / "run" / "mesh.glb").stat().st_size > 100 and (tmp_path / "run" / "preview.png").exists()


def test_image_is_the_reference_of_a_prior_that_takes_one() -> None:
    made = load("imagedream-sd21", ["image=car.png", "matte=toybox-matte"])
    assert (made.prior.image, made.prior.matte, made.first_view) == ("car.png", "toybox-matte", None)
    assert load("mvdream-toybox", ["image=car.png"]).first_view == "car.png"
    for words, key in (([], "image"), (["prompt=a car"], "prior.image"), (["image=no.png"], "image")):
        with refused(key):
            load("imagedream-sd21", words).check()


@pytest.mark.parametrize("words", [[], ["refine.share=0.5"], ["warm_start.share=0.3", "refine.share=0.7"]])
def test_quick_config_fits_the_object_to_the_views_of_an_image(words: list[str]) -> None:
    assert load("quick-toybox", ["prompt=a car"]).warm_steps == 0
    made = load("quick-toybox", ["prompt=a car", "image=car.png", *words])
    assert made.warm_steps == {2: 90}.get(len(words), 120) and made.distilled_steps == (30 if len(words) == 1 else 0)


REFERENCE: dict[str, Any] = {
    "distillation": {"guidance_scale": 5, "recon_std_rescale": 0.2, "timestep_per": "batch"},
    "camera": {"fov_range": (45, 50), "distance_range": (0.6, 0.75), "elevation_range": (0, 5), "n_view": 4},
    "material": {"ambient_only_steps": 5000, "textureless_probability": 0.5, "ambient": 1, "diffuse": 0},
    "loss": {"sparsity": 1, "opaque": 0, "z_variance": 0, "orientation": {0: 10, 5000: 1000}},
    "trainer": {"max_steps": 12500, "precision": "16-mixed", "val_check_interval": 200},
}


def test_imagedream_config_has_the_reference_values() -> None:
    """The public configs/imagedream-sd21-shading.yaml (bytedance/ImageDream at 26c3972)."""
    made = load("imagedream-sd21")
    for section, values in REFERENCE.items():
        assert {key: getattr(getattr(made, section), key) for key in values} == values
    assert (made.size, made.scenes_per_step) == ({0: 64, 5000: 192, 10000: 256}, {0: 2, 5000: 1})
    assert made.negative_prompt == load("mvdream-sd21").negative_prompt


def test_preview_takes_an_azimuth_per_view() -> None:
    made = load("image-to-3d-sdxl")
    position = view_cameras(made, 1, 16).position
    assert position.norm(dim=-1).tolist() == pytest.approx([27.2] * 6, abs=1e-3)
    assert position[:, 2].abs().max() < 1e-4
    azimuth = position[:, 1].atan2(position[:, 0]).rad2deg().remainder(360)
    assert azimuth.tolist() == pytest.approx([0, 45, 90, 180, 270, 315], abs=1e-3)
    with pytest.raises(ConfigError, match="azimuths"):
        load("image-to-3d-sdxl", ["camera.n_view=4"])
