import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.support.errors import refused
from tests.support.photographs import SIZE, TINY, photographs
from tests.support.tiny_prior import tiny_prior
from threedgen import config as configs
from threedgen.config import registry
from threedgen.data.srn.reader import write_instance
from threedgen.evaluation.consistency import fits, run
from threedgen.evaluation.consistency.options import ConsistencyConfig, FolderSamplerConfig, MVDreamSamplerConfig
from threedgen.evaluation.consistency.scenes import FolderSampler, MVDreamSampler
from threedgen.evaluation.metrics.figures import Json
from threedgen.geometry.images import to_uint8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, index in (("a", 5), ("b", 8)):
        write_instance(tmp_path / "views" / name, photographs(index=index))
    return tmp_path / "views"


def settings(out: Path, **values: Any) -> ConsistencyConfig:
    out.mkdir(exist_ok=True)
    quick = TINY | {"steps": 3, "rays": 64}
    fixed = {"task": "consistency", "out": str(out), "threads": 1, "protocol": quick, "tsed": {"pairs": 1}}
    return ConsistencyConfig.model_validate(fixed | values)


def without_times(path: Path) -> Any:
    tree = json.loads(path.read_text())
    for entry in tree["scenes"]:
        entry.pop("fit_seconds")
    return tree


def test_folder_is_scored_beside_the_original_and_a_killed_run_resumes(folder: Path, tmp_path, monkeypatch) -> None:
    truth = tmp_path / "cars_test"
    shutil.copytree(folder, truth)
    for path in (folder / "b" / "rgb").iterdir():  # samples that are not the truth
        shutil.copy(folder / "a" / "rgb" / path.name, path)
    out = tmp_path / "run"
    config = settings(out, sampler=str(folder), scenes={"name": "srn", "path": str(truth), "condition": 2})
    done: list[str] = []
    real = fits.score

    def counted(job: fits.Job) -> Json:
        done.append(f"{job.scene} {job.sampler}")
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(fits, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        run.run(config, quiet=True)
    assert run.run(config, resume=out, quiet=True) == 0
    assert done == ["a folder", "a original", "b folder", "b folder", "b original"]
    tree = without_times(out / "consistency.json")
    assert tree["rows"]["folder"]["scenes"] == tree["rows"]["original"]["scenes"] == 2
    held = [entry["held_out"] for entry in tree["scenes"]]
    assert all(one == held[0] for one in held) and len(held[0]) == 2 and 2 not in held[0]
    by = {(entry["scene"], entry["row"]): entry for entry in tree["scenes"]}
    assert by["a", "folder"]["psnr"] == by["a", "original"]["psnr"] != by["b", "folder"]["psnr"]
    assert by["a", "folder"]["true_psnr"] == 100 > 40 > by["b", "folder"]["true_psnr"]
    assert list(by) == [("a", "folder"), ("a", "original"), ("b", "folder"), ("b", "original")]
    assert (out / "consistency.md").is_file() and (out / "sheet.png").is_file()
    (out / "scores" / "b.original.json").write_text('{"key": "')  # as after a full disk
    assert run.run(config, resume=out, quiet=True) == 0
    assert done[5:] == ["b original"] and without_times(out / "consistency.json") == tree
    path = folder / "a" / "rgb" / "000007.png"
    shutil.copy(folder / "a" / "rgb" / "000008.png", path)  # other pixels: only their own score is made again
    run.run(config, resume=out, quiet=True)
    assert done[6:] == ["a folder"]


def test_key_depends_on_everything_that_determines_the_score(tmp_path: Path) -> None:
    def key(config: ConsistencyConfig, scene: str = "a", held_out: int = 1, turn: float = 0) -> str:
        views = photographs(turn=turn)
        return fits.Job(config, scene, "sampled", to_uint8(views.images), views.cameras, [held_out]).key()

    config = settings(tmp_path, sampler="mvdream")
    changed = {
        key(config, turn=1),
        key(config, held_out=2),
        key(config.model_copy(update={"seed": 1})),
        key(settings(tmp_path, protocol=TINY | {"steps": 9, "rays": 64})),
        key(settings(tmp_path, tsed={"pairs": 3})),
    }
    assert len(changed) == 5 and key(config) not in changed
    assert key(settings(tmp_path / "x"), "z") == key(config)


def test_samplers_are_compared_scene_by_scene(folder: Path, tmp_path: Path) -> None:
    """One sampler has the true views, the other the same in a wrong order."""
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    for scene in "ab":
        names = sorted(path.name for path in (folder / scene / "rgb").iterdir())
        for k, name in enumerate(names):
            shutil.copy(folder / scene / "rgb" / names[(5 * k + 3) % len(names)], wrong / scene / "rgb" / name)
    scenes = {"name": "srn", "path": str(folder), "condition": 2}
    samplers = {"right": str(folder), "wrong": {"name": "folder", "path": str(wrong)}}
    out = tmp_path / "run"
    config = settings(out, samplers=samplers, scenes=scenes, protocol=TINY | {"steps": 40, "rays": 256})
    assert run.run(config, quiet=True) == 0
    tree = json.loads((out / "consistency.json").read_text())
    rows, less = tree["rows"], tree["differences"]["wrong"]
    assert rows["right"]["psnr"] == rows["original"]["psnr"] and rows["original"]["true_psnr"]["mean"] is None
    assert rows["right"]["psnr"]["mean"] - rows["wrong"]["psnr"]["mean"] == pytest.approx(less["psnr"]["mean"])
    assert less["psnr"]["won"] == 2 and less["psnr"]["low"] > 0 and rows["right"]["true_psnr"]["mean"] == 100
    assert (out / "views.png").is_file()


def test_prior_is_scored_and_its_samples_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    build = registry.build
    monkeypatch.setattr(registry, "build", lambda kind, *a, **k: prior if kind == "prior" else build(kind, *a, **k))
    calls: list[int] = []
    sample = prior.sample
    monkeypatch.setattr(prior, "sample", lambda *args, **options: calls.append(1) or sample(*args, **options))
    scenes = {"name": "toybox", "count": 1, "views": 8, "size": SIZE}
    monkeypatch.setattr(MVDreamSamplerConfig, "together", 4)
    config = settings(tmp_path, sampler={"name": "mvdream", "steps": 1}, scenes=scenes)
    assert run.run(config, quiet=True) == 0 and len(calls) == 2
    assert run.run(config, resume=tmp_path, quiet=True) == 0 and len(calls) == 2
    rows = json.loads((tmp_path / "consistency.json").read_text())["rows"]
    assert rows["original"]["scenes"] == rows["mvdream"]["scenes"] == 1
    patched = registry.build

    def farther(kind: str, *rest: Any, **more: Any) -> Any:
        if kind != "scenes":
            return patched(kind, *rest, **more)
        far = torch.tensor([1.0, 1, 1, 1.1])
        (scene,) = patched(kind, *rest, **more)
        return [replace(scene, cameras=replace(scene.cameras, c2w=scene.cameras.c2w * far))]

    monkeypatch.setattr(registry, "build", farther)
    assert run.run(config, resume=tmp_path, quiet=True) == 0 and len(calls) == 4, "samples of other cameras"


@pytest.mark.slow
def test_two_workers_give_the_result_of_one(folder: Path, tmp_path: Path) -> None:
    trees = []
    for workers in (1, 2):
        out = tmp_path / f"run{workers}"
        run.run(settings(out, sampler=str(folder), workers=workers), quiet=True)
        trees.append(without_times(out / "consistency.json"))
    assert trees[0] == trees[1]


def test_current_folder_is_a_scene_with_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "b")
    assert list(FolderSampler(FolderSamplerConfig(path=".")).scenes) == ["b"]


def test_short_forms_of_the_sampler(folder: Path) -> None:
    config = configs.load("consistency", [f"sampler={folder}"])
    assert (config.sampler.name, config.sampler.path, config.scenes.name) == ("folder", str(folder), "sampled")
    config = configs.load("consistency", [f"sampler={folder}", "scenes.count=1"])
    (scene,) = registry.build("scenes", config.scenes, registry.build("sampler", config.sampler), 0)
    assert (config.scenes.name, scene.name) == ("sampled", "a")
    for several, own in ((f"{folder}, b: {folder}", "sampled"), (f"{folder}, b: threedim", "toybox")):
        assert configs.load("consistency", [f"samplers={{a: {several}}}"]).scenes.name == own
    config = configs.load("consistency", ["sampler=mvdream", "protocol.name=paper"])
    assert (config.sampler.name, config.scenes.name, config.protocol.steps) == ("mvdream", "toybox", 1000)
    with refused(None, "sampled"):
        configs.load("consistency", ["scenes.name=sampled"])
    with refused("sampler.path"):
        configs.load("consistency", ["sampler=/nowhere/at/all"]).check()


def test_mistakes_in_the_table_of_samplers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "nothing").mkdir(parents=True)
    with refused("samplers.ours.weights", "config.json"):
        settings(out, samplers={"ours": {"name": "threedim", "weights": str(out / "nothing")}}).check()
    for name in ("original", "a/b"):
        with refused(None, repr(name), kind=ValidationError):
            settings(out, samplers={name: str(folder)})
    assert settings(out, samplers={"one": str(folder)}, scenes="sampled").check() is None
    with refused(None, "'threedim'", kind=ValidationError):
        settings(out, samplers={"one": "threedim"}, scenes="sampled")


def test_mistakes_are_found_before_any_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "score", lambda job: pytest.fail("too late"))
    truth, out = tmp_path / "cars_test", tmp_path / "run"
    shutil.copytree(folder, truth)
    scenes = {"name": "srn", "path": str(truth), "condition": 2}

    def check(value: str, **values: Any) -> None:
        with refused(None, value) as error:
            run.run(settings(out, **({"sampler": str(folder)} | values)), quiet=True)
        assert "\n" not in str(error.value)

    pose = folder / "a" / "pose" / "000004.txt"
    right = pose.read_text()
    pose.write_text((folder / "a" / "pose" / "000005.txt").read_text())
    check("a/pose/000004.txt", scenes=scenes)
    pose.write_text(right)
    shutil.rmtree(folder / "b")
    check("views/b", scenes=scenes)
    monkeypatch.setattr(MVDreamSampler, "__init__", lambda self, config: None)
    check("scenes.name=toybox", sampler="mvdream", scenes=scenes)
