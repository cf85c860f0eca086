from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.errors import refused
from tests.support.small_run import SMALL, small_field
from tests.support.task_server import TINY, server, write_config
from tests.support.tiny_imagedream import imagedream_file
from tests.support.tiny_mvadapter import tiny_prior_config
from tests.support.toy_run import log
from threedgen.config import ConfigError, load
from threedgen.run.metrics import read_summary
from threedgen.systems.generate.views import view_cameras
from threedgen.train import checkpoint_file

SHORT = {"trainer": TINY["trainer"] | {"max_steps": 2}, "warm_start": {"share": 0}, "refine": {"strengths": []}}


def reference_image(path: Path) -> str:
    pixels = np.full((24, 32, 3), 255, np.uint8)
    pixels[6:18, 8:28] = (200, 30, 30)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("name", ["reconstruction", "vsd", "jsd"])
def test_distillation_runs_with_an_adapter(name: str, tmp_path: Path) -> None:
    """The reconstruction starts from its views and resamples views; the others have a reference image."""
    more: dict[str, Any] = {} if name == "reconstruction" else {"image": reference_image(tmp_path / "car.png")}
    prior = tiny_prior_config(tmp_path / "prior", **more)
    write_config(tmp_path / "tiny.yaml", TINY | (SHORT if more else {}), prior=prior, distillation={"name": name})
    assert server().run(tmp_path, words=["--config", "tiny.yaml", "out=run"]) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and (tmp_path / "run" / "mesh.glb").exists()
    assert (tmp_path / "run" / "preview.png").exists()
    saved = checkpoint_file.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert {"prior.weights", "prior.adapter"} <= saved["weights"].keys(), "a resumed run must have the same"


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
    for word in ("matte=toybox-matte", "prior.matte=toybox-matte"):
        made = load("imagedream-sd21", ["image=car.png", word])
        assert (made.prior.image, made.prior.matte, made.first_view) == ("car.png", "toybox-matte", None)
        assert made.matte == "toybox-matte", "the image is checked with it"
    assert load("mvdream-toybox", ["image=car.png"]).first_view == "car.png"
    for words, key in (([], "image"), (["prompt=a car"], "prior.image"), (["image=no.png"], "image")):
        with refused(key):
            load("imagedream-sd21", words).check()


@pytest.mark.parametrize(
    ("words", "warm", "distilled"), [([], 120, 0), (["warm_start.share=0.3", "refine.share=0.7"], 90, 0)]
)
def test_quick_config_fits_the_object_to_the_views_of_an_image(words: list[str], warm: int, distilled: int) -> None:
    assert load("quick-toybox", ["prompt=a car"]).warm_steps == 0
    made = load("quick-toybox", ["prompt=a car", "image=car.png", *words])
    assert (made.warm_steps, made.distilled_steps) == (warm, distilled)


def test_preview_takes_an_azimuth_per_view() -> None:
    made = load("image-to-3d-sdxl")
    position = view_cameras(made, 1, 16).position
    assert position.norm(dim=-1).tolist() == pytest.approx([27.2] * 6, abs=1e-3)
    assert position[:, 2].abs().max() < 1e-4
    azimuth = position[:, 1].atan2(position[:, 0]).rad2deg().remainder(360)
    assert azimuth.tolist() == pytest.approx([0, 45, 90, 180, 270, 315], abs=1e-3)
    with pytest.raises(ConfigError, match="azimuths"):
        load("image-to-3d-sdxl", ["camera.n_view=4"])
