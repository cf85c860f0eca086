import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.support import photographs
from tests.support.ball_run import Ball
from tests.support.errors import refused
from tests.support.tiny_threedim import tiny_network
from threedgen.export.run_field import field_view
from threedgen.geometry.views import Request
from threedgen.guidance.novel_view import novel_views as folder
from threedgen.guidance.novel_view.novel_views import ThreeDiMSampler
from threedgen.guidance.novel_view.options import CamerasConfig
from threedgen.representations.volume.options import MarchConfig
from threedgen.run.folder import write_config
from threedgen.run.metrics import read_summary
from threedgen.systems.novel_view import image_to_3d
from threedgen.systems.novel_view.options import ImageTo3DConfig

TRAINED = CamerasConfig(elevation=(-10.0, 80.0), distance=(2.6, 2.6), focal=1.374)


@pytest.fixture
def car(tmp_path: Path) -> Path:
    """An image, beside a model in the folder "model"."""
    folder.save(tiny_network(), tmp_path / "model", TRAINED)
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[4:16, 8:32] = (200, 20, 20, 255)
    Image.fromarray(pixels).save(tmp_path / "car.png")
    return tmp_path / "car.png"


def settings(tmp_path: Path, car: Path, **given: Any) -> ImageTo3DConfig:
    values: dict[str, Any] = {
        "task": "image-to-3d", "out": str(tmp_path / "run"), "threads": 1, "image": str(car),
        "weights": str(tmp_path / "model"), "views": 4, "rings": [20, 40], "sampler": {"steps": 2},
        "protocol": photographs.TINY | {"steps": 60, "rays": 256},
        "result": {"turntable": {"n_view": 2, "height": 16, "width": 16}, "mesh_resolution": 16},
        "export": {"texture": 128, "lods": [], "resolution": 32, "refine": 0, "budget": 200},
    }  # fmt: skip
    (tmp_path / "run").mkdir(exist_ok=True)
    return ImageTo3DConfig.model_validate(values | given)


def boxes(sampler: ThreeDiMSampler, requests: list[Request]) -> list[torch.Tensor]:
    """Views in which there is a dark square in the middle, from everywhere."""
    views = torch.ones(len(requests[0].target), 8, 8, 3)
    views[:, 2:6, 2:6] = torch.tensor([0.7, 0.1, 0.1])
    return [views]


def test_make_writes_all_files_and_resumes(tmp_path: Path, car: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ThreeDiMSampler, "__call__", boxes)
    config, run = settings(tmp_path, car), tmp_path / "run"
    assert config.prompt == "car" and "prompt" not in json.loads(config.model_dump_json())
    write_config(run, config)
    assert image_to_3d.run(config) == 0
    summary = read_summary(run)
    files = ["sampled.png", "turntable.mp4", "views.png", "mesh.glb", "report.html"]
    assert summary["status"] == "finished" and summary["files"] == files
    assert summary["triangles"] > 20 and len(summary["notes"]) == 1, "the object fills the views"
    assert capsys.readouterr().out.splitlines()[-2:] == [f"page: {run / 'report.html'}", str(run)]
    assert "<title>car" in (run / "report.html").read_text()
    mesh = trimesh.load(run / "mesh.glb", force="mesh")
    assert 0.1 < np.abs(mesh.vertices).max() < 1  # in radii of the field, which is larger than the object
    monkeypatch.setattr(ThreeDiMSampler, "__call__", lambda *words: pytest.fail("sampled again"))
    assert image_to_3d.run(config, resume=run, quiet=True) == 0
    before = (run / "mesh.glb").read_bytes()
    (run / "summary.json").unlink()
    assert image_to_3d.run(config, resume=run, quiet=True) == 0  # goes on from the views that were sampled
    assert (run / "mesh.glb").read_bytes() == before


def test_asset_is_named_after_the_image(tmp_path: Path, car: Path) -> None:
    view = field_view(Ball(), None, MarchConfig(), "cpu")
    made = image_to_3d.asset(view, settings(tmp_path, car), {"image": "car.png"}, tmp_path / "asset")
    assert (tmp_path / "asset" / "car.glb").is_file() and "car.glb" in made.files


def test_sample_views_samples_the_rings(tmp_path: Path, car: Path) -> None:
    views = image_to_3d.sample_views(settings(tmp_path, car), tmp_path, [], quiet=True)
    assert views.images.shape == (9, 8, 8, 3)
    assert torch.equal(views.images[0], image_to_3d.fit_on_canvas(image_to_3d.read_on_white(car), 8, 8))
    place = views.cameras.position / 2.6
    steep = torch.rad2deg(torch.asin(place[:, 2]))
    assert torch.allclose(steep, torch.tensor([20.0] * 5 + [40.0] * 4), atol=1e-3)
    ring = torch.rad2deg(torch.atan2(place[:, 1], place[:, 0])).round().remainder(360)
    assert ring.tolist() == [0, 0, 90, 180, 270, 0, 90, 180, 270]
    assert torch.allclose(views.cameras.K[0], torch.tensor([[10.992, 0, 4], [0, 10.992, 4], [0, 0, 1]]))


def test_fit_on_canvas_centres_on_white(car: Path, tmp_path: Path) -> None:
    seen = image_to_3d.fit_on_canvas(image_to_3d.read_on_white(car), 10, 10)
    assert seen.shape == (10, 10, 3)
    white = (seen == 1).all(-1)
    box = torch.zeros(10, 10, dtype=torch.bool)
    box[3:6, 2:8] = True
    assert torch.equal(white, ~box)
    dark = image_to_3d.fit_on_canvas(Image.new("RGB", (3, 6)), 12, 12)
    assert dark[:, 4:8].max() < 0.1 and (dark[:, :3] == 1).all() and (dark[:, 9:] == 1).all()


def test_weights_of_unknown_cameras_need_distance_and_fov(tmp_path: Path, car: Path) -> None:
    folder.save(tiny_network(), tmp_path / "model")
    with refused(None, "distance", "fov"):
        image_to_3d.run(settings(tmp_path, car), quiet=True)
    at = image_to_3d.cameras(settings(tmp_path, car, distance=2.0, fov=90), None, 8, 8)
    assert at.position.norm(dim=-1).tolist() == pytest.approx([2.0] * 9) and float(at.K[0, 0, 0]) == pytest.approx(4)
