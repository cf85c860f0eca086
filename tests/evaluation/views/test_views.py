import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_scenes import TinyScenes, TinyScenesConfig, tiny
from threedgen.data.scene_views import SceneViews
from threedgen.evaluation.views.options import EvaluateViewsConfig
from threedgen.evaluation.views.run import run
from threedgen.geometry.cameras_file import write_cameras
from threedgen.geometry.images import write_depth, write_png
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.train.plan import plan

__all__ = ["tiny"]
pytestmark = pytest.mark.usefixtures("tiny")


def options(folder: Path, **changes: Any) -> EvaluateViewsConfig:
    prior = {"blocks": changes.pop("blocks", "toybox-panorama")}
    scenes = {"name": "tiny"} | changes.pop("scenes", {})
    values = {"scenes": scenes, "prior": prior, "features": {"name": "means"}, "out": str(folder)}
    few = {"count": 2, "steps": 2, "guidance_scale": 2}
    return EvaluateViewsConfig(task="evaluate-views", **values, **few).model_copy(update=changes)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the sampler, whether it had attention between views."""
    calls: list[bool] = []
    sample_views = MVDiffusion.sample_views

    def counted(self: MVDiffusion, prompts: Any, geometry: Any, *args: Any, **kwargs: Any) -> Tensor:
        views = sample_views(self, prompts, geometry, *args, **kwargs)
        calls.append(geometry is not None)
        return views

    monkeypatch.setattr(MVDiffusion, "sample_views", counted)
    return calls


def test_truth_is_the_upper_bound_and_samples_are_kept(tmp_path: Path, samples: list[bool]) -> None:
    assert run(options(tmp_path), None, True) == 0
    before = report(tmp_path)
    rows, less = before["rows"], before["difference"]
    assert list(rows) == ["truth", "attention", "base", "other_truth"]
    assert rows["truth"]["ratio"] == {"mean": 1, "low": 1, "high": 1} and "fid" not in rows["truth"]
    assert rows["base"]["ratio"]["mean"] < 0.9 and rows["attention"]["psnr"] != rows["base"]["psnr"]
    gain = rows["attention"]["psnr"]["mean"] - rows["base"]["psnr"]["mean"]
    assert less["psnr"]["mean"] == pytest.approx(gain, abs=1e-3)
    assert rows["base"]["fid"]["mean"] > rows["other_truth"]["fid"]["mean"] > 0
    assert "| with minus without |" in (tmp_path / "report.md").read_text() and (tmp_path / "sheet.png").is_file()
    assert samples == [True, False] * 2
    (tmp_path / "views" / "base" / "00001.safetensors").write_bytes(b"cut off")
    assert run(options(tmp_path), None, True) == 0 and report(tmp_path) == before and samples[4:] == [False]
    assert run(options(tmp_path, count=3), None, True) == 0
    assert report(tmp_path)["scenes"]["base"][:2] == before["scenes"]["base"] and samples[5:] == [True, False]
    assert run(options(tmp_path, guidance_scale=3.0), None, True) == 0 and len(samples) == 11


def test_stopped_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(options(tmp_path / "whole"), None, True)
    denoise, calls = MVDiffusion.denoise_views, 0

    def interrupted(self: MVDiffusion, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second of four samples
            signal.raise_signal(signal.SIGINT)
        return denoise(self, *args)

    monkeypatch.setattr(MVDiffusion, "denoise_views", interrupted)
    assert run(options(tmp_path / "cut"), None, True) == 130
    assert not (tmp_path / "cut" / "report.json").exists()
    assert len(list(tmp_path.glob("cut/views/*/*"))) in (1, 2)
    assert run(options(tmp_path / "cut"), None, True) == 0
    assert report(tmp_path / "cut") == report(tmp_path / "whole")


def test_given_view_and_views_with_depth_are_compared(tmp_path: Path) -> None:
    assert run(options(tmp_path, blocks="toybox-outpaint"), None, True) == 0
    rows = report(tmp_path)["rows"]
    assert rows["truth"]["given"]["mean"] == 100
    assert rows["attention"]["given"]["mean"] < 30 and "beside_given" in rows["base"]
    assert (tmp_path / "report.md").read_text().count("| with minus without |") == 2
    out = tmp_path / "depth"
    assert run(options(out, blocks="toybox-depth", scenes={"depth": True, "views": 3}), None, True) == 0
    rows = report(out)["rows"]
    assert rows["truth"]["psnr"]["mean"] > 25 > rows["base"]["psnr"]["mean"]


@pytest.mark.parametrize(("kind", "part"), [("outpaint", "images"), ("depth", "depth"), ("depth", "cameras")])
def test_views_of_corrected_scenes_are_sampled_again(tmp_path, samples, monkeypatch, kind, part) -> None:
    config = options(tmp_path, blocks=f"toybox-{kind}", scenes={"depth": kind == "depth"}, count=1)
    assert run(config, None, True) == run(config, None, True) == 0 and len(samples) == 2
    read = TinyScenes.scene

    def corrected(self: TinyScenes, index: int) -> SceneViews:
        scene = read(self, index)
        of = {"images": scene.views.images, "depth": scene.depth, "cameras": scene.views.cameras.c2w[:, :3]}
        of[part][0] *= 0.99
        return scene

    monkeypatch.setattr(TinyScenes, "scene", corrected)
    assert run(config, None, True) == 0 and len(samples) == 4


def write(folder: Path, scene: SceneViews, images: Tensor | None = None, inner: str = "views/") -> None:
    names = [f"{inner}{number}.png" for number in range(len(scene))]
    for name, view in zip(names, scene.views.images if images is None else images, strict=True):
        write_png(folder / name, view)
    write_cameras(folder / "cameras.json", scene.views.cameras, names, ["a room"] * len(scene))
    if scene.depth is not None:
        for number, depth in enumerate(scene.depth):
            write_depth(folder / "depth" / f"{number}.png", depth.numpy())


@pytest.mark.parametrize("depth", [False, True])
def test_existing_views_need_no_model(tmp_path: Path, depth: bool, samples: list[bool]) -> None:
    kind = {"depth": depth}
    source = TinyScenes(TinyScenesConfig(**kind), split="test")
    for number in range(2):
        scene = source.scene(number)
        write(tmp_path / "true" / f"room {number}", scene, inner="frames/" if number else "")
        noise = torch.rand(scene.views.images.shape, generator=torch.Generator().manual_seed(number))
        write(tmp_path / "noise" / f"room {number}", scene, noise)
    ratio = {}
    for name in ("true", "noise"):
        config = options(tmp_path / f"{name} run", views=str(tmp_path / name), scenes=kind, count=3, blocks=None)
        config.check()
        assert "weights" not in plan(config)
        assert run(config, None, True) == 0
        ratio[name] = report(tmp_path / f"{name} run")["rows"]["views"]["ratio"]
    assert ratio["true"]["mean"] == pytest.approx(1, abs=0.1) and ratio["noise"]["mean"] < 0.4
    assert ratio["noise"]["low"] < ratio["noise"]["mean"] < ratio["noise"]["high"]
    assert not samples


def test_views_of_another_size_and_moving_cameras_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "small", TinyScenes(TinyScenesConfig()).scene(0))
    write_png(tmp_path / "small" / "views" / "3.png", torch.rand(8, 8, 3))
    write(tmp_path / "walk", TinyScenes(TinyScenesConfig(depth=True)).scene(0))
    for name, values in (("small", ("16 x 16", "8 x 8")), ("walk", ())):
        with refused("views", tmp_path / name, *values):
            run(options(tmp_path / "out", views=str(tmp_path / name)), None, True)


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"blocks": "toybox-depth"}, "prior.blocks", ("'toybox-depth'", "toybox-panorama")),
        ({"scenes": {"depth": True}}, "prior.blocks", ("'toybox-panorama'", "variant=depth")),
    ],
)
def test_unsuitable_scenes_and_models_are_refused_before_sampling(tmp_path, samples, changes, key, values) -> None:
    with refused(key, *values):
        run(options(tmp_path, **changes), None, True)
    assert not samples
