"""The task "consistency": rows of samplers and of the original, a killed run goes on, mistakes before any fit."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.support.photographs import SIZE, TINY, photographs
from tests.support.tiny_prior import tiny_prior
from threedgen import cli
from threedgen import config as configs
from threedgen.config import ConfigError, registry
from threedgen.data.srn.writer import write_instance
from threedgen.evaluation.consistency import fits, run
from threedgen.evaluation.consistency.options import ConsistencyConfig
from threedgen.evaluation.consistency.samplers import MVDreamSampler
from threedgen.geometry.images import png
from threedgen.geometry.poses import opencv_axes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes as somebody else might have drawn them."""
    for name, index in (("a", 5), ("b", 8)):
        write_instance(tmp_path / "views" / name, photographs(index=index))
    return tmp_path / "views"


def settings(out: Path, **given: Any) -> ConsistencyConfig:
    quick = TINY | {"steps": 3, "rays": 64}
    values = {
        "task": "consistency", "out": str(out), "threads": 1, "protocol": quick, "bootstrap": 100,
        "tsed": {"pairs": 1, "size": 16},
    }  # fmt: skip
    return ConsistencyConfig.model_validate(values | given)


def without_times(path: Path) -> Any:
    tree = json.loads(path.read_text())
    for entry in tree["scenes"]:
        entry.pop("fit_seconds")
    return tree


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_folder_is_scored_beside_the_original_and_a_killed_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = tmp_path / "cars_test"
    shutil.copytree(folder, truth)
    for path in (folder / "b" / "rgb").iterdir():  # what was drawn is not the truth
        shutil.copy(folder / "a" / "rgb" / path.name, path)
    out = tmp_path / "run"
    out.mkdir()
    config = settings(out, sampler=str(folder), scenes={"name": "srn", "path": str(truth), "condition": 2})
    done: list[str] = []
    real = fits.score

    def counted(job: fits.Job) -> fits.Score:
        done.append(f"{job.scene} {job.row}")
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
    lines = list(csv.DictReader((out / "consistency.csv").read_text().splitlines()))
    assert [(line["scene"], line["row"]) for line in lines] == [
        ("a", "folder"),
        ("a", "original"),
        ("b", "folder"),
        ("b", "original"),
    ]
    text = (out / "consistency.md").read_text()
    assert "| original data | 2 |" in text and "| folder | 2 |" in text and (out / "sheet.png").is_file()

    (out / "scores" / "b.original.json").write_text('{"key": "')  # as a disk that was full might leave it
    assert run.run(config, resume=out, quiet=True) == 0
    assert done[5:] == ["b original"] and without_times(out / "consistency.json") == tree
    path = folder / "a" / "rgb" / "000007.png"
    shutil.copy(folder / "a" / "rgb" / "000008.png", path)  # other pixels: only their own score is made anew
    run.run(config, resume=out, quiet=True)
    assert done[6:] == ["a folder"]


def test_the_key_knows_everything_that_decides(tmp_path: Path) -> None:
    config, views = settings(tmp_path, sampler="mvdream"), photographs()
    key = fits.Job.of(config, "a", "sampled", views, [1]).key()
    for changed in (
        fits.Job.of(config, "a", "sampled", photographs(turn=1), [1]),
        fits.Job.of(config, "a", "sampled", views, [2]),
        fits.Job.of(config.model_copy(update={"seed": 1}), "a", "sampled", views, [1]),
        fits.Job.of(settings(tmp_path, protocol=TINY | {"steps": 9, "rays": 64}), "a", "sampled", views, [1]),
        fits.Job.of(settings(tmp_path, tsed={"pairs": 3}), "a", "sampled", views, [1]),
    ):
        assert changed.key() != key
    assert fits.Job.of(settings(tmp_path / "x"), "z", "original", views, [1]).key() == key


def test_several_samplers_are_compared_scene_by_scene(folder: Path, tmp_path: Path) -> None:
    """One draws the truth, the other the views in a wrong order: the first wins in every scene."""
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    for scene in "ab":
        names = sorted(path.name for path in (folder / scene / "rgb").iterdir())
        for k, name in enumerate(names):
            shutil.copy(folder / scene / "rgb" / names[(5 * k + 3) % len(names)], wrong / scene / "rgb" / name)
    out = tmp_path / "run"
    out.mkdir()
    scenes = {"name": "srn", "path": str(folder), "condition": 2}
    samplers = {"right": str(folder), "wrong": {"name": "folder", "path": str(wrong)}}
    config = settings(out, samplers=samplers, scenes=scenes, protocol=TINY | {"steps": 40, "rays": 256})
    assert run.run(config, quiet=True) == 0
    tree = json.loads((out / "consistency.json").read_text())
    rows, less = tree["rows"], tree["differences"]["wrong"]
    assert rows["right"]["psnr"] == rows["original"]["psnr"] and rows["original"]["true_psnr"]["mean"] is None
    assert rows["right"]["psnr"]["mean"] - rows["wrong"]["psnr"]["mean"] == pytest.approx(less["psnr"]["mean"])
    assert less["psnr"]["won"] == 2 and less["psnr"]["low"] > 0 and rows["right"]["true_psnr"]["mean"] == 100
    text = (out / "consistency.md").read_text()
    assert "| right minus |" in text and "| PSNR to the true views |" in text
    assert (out / "views.png").is_file()


def test_a_folder_alone_has_no_original_row(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    views = photographs()
    away = replace(views.cameras, c2w=opencv_axes(views.cameras.c2w))
    write_instance(folder / "c", replace(views, cameras=away))
    assert run.run(settings(out, sampler=str(folder)), quiet=True) == 0
    text = (out / "consistency.md").read_text()
    assert "| original data (none is known) |" in text and "\n- c: the cameras look away from" in text
    assert list(json.loads((out / "consistency.json").read_text())["rows"]) == ["folder"]
    files = json.loads((out / "summary.json").read_text())["files"]
    assert set(files) == {path.name for path in out.iterdir() if path.is_file()} - {"summary.json"}


def test_the_prior_is_scored_and_what_it_drew_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    build = registry.build

    def built(kind: str, *rest: Any, **more: Any) -> Any:
        return prior if kind == "prior" else build(kind, *rest, **more)

    monkeypatch.setattr(registry, "build", built)
    drawn: list[int] = []
    sample = prior.sample
    monkeypatch.setattr(prior, "sample", lambda *words, **more: drawn.append(1) or sample(*words, **more))
    scenes = {"name": "toybox", "count": 1, "views": 8, "size": SIZE}
    config = settings(tmp_path, sampler={"name": "mvdream", "together": 4, "steps": 1}, scenes=scenes)
    assert run.run(config, quiet=True) == 0 and len(drawn) == 2
    assert run.run(config, resume=tmp_path, quiet=True) == 0 and len(drawn) == 2
    rows = json.loads((tmp_path / "consistency.json").read_text())["rows"]
    assert rows["original"]["scenes"] == rows["mvdream"]["scenes"] == 1


@pytest.mark.slow
def test_fields_are_fitted_side_by_side(folder: Path, tmp_path: Path) -> None:
    """Two workers give what one gives."""
    trees = []
    for workers in (1, 2):
        out = tmp_path / f"run{workers}"
        out.mkdir()
        run.run(settings(out, sampler=str(folder), workers=workers), quiet=True)
        trees.append(without_times(out / "consistency.json"))
    assert trees[0] == trees[1]


# --- mistakes ----------------------------------------------------------------------------------------------------


def test_short_forms_of_the_sampler(folder: Path) -> None:
    config = configs.load("consistency", [f"sampler={folder}"])
    assert (config.sampler.name, config.sampler.path, config.scenes.name) == ("folder", str(folder), "sampled")
    for several, own in ((f"{folder}, b: {folder}", "sampled"), (f"{folder}, b: threedim", "toybox")):
        assert configs.load("consistency", [f"samplers={{a: {several}}}"]).scenes.name == own
    config = configs.load("consistency", ["sampler=mvdream", "protocol.name=paper"])
    assert (config.sampler.name, config.scenes.name, config.protocol.steps) == ("mvdream", "toybox", 1000)
    with pytest.raises(ConfigError, match="sampled"):
        configs.load("consistency", ["scenes.name=sampled"])
    with pytest.raises(ConfigError, match="sampler.path: there is no folder"):
        configs.load("consistency", ["sampler=/nowhere/at/all"]).check()


def test_mistakes_in_the_table_of_samplers(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "nothing").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"samplers\.ours\.weights: .*no config\.json"):
        settings(out, samplers={"ours": {"name": "threedim", "weights": str(out / "nothing")}}).check()
    for name in ("original", "a/b", ""):
        with pytest.raises(ValidationError, match="no name for a row"):
            settings(out, samplers={name: str(folder)})
    assert settings(out, samplers={"one": str(folder)}, scenes="sampled").check() is None
    with pytest.raises(ValidationError, match="the sampler is 'threedim'"):
        settings(out, samplers={"one": "threedim"}, scenes="sampled")


def test_mistakes_are_found_before_any_field_is_fitted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "score", lambda job: pytest.fail("too late"))
    truth = tmp_path / "cars_test"
    shutil.copytree(folder, truth)
    with_truth = settings(
        tmp_path / "run", sampler=str(folder), scenes={"name": "srn", "path": str(truth), "condition": 2}
    )

    def said(config: ConsistencyConfig) -> str:
        with pytest.raises(ConfigError) as error:
            run.run(config, quiet=True)
        assert "\n" not in str(error.value)
        return str(error.value)

    pose = folder / "a" / "pose" / "000004.txt"
    right = pose.read_text()
    pose.write_text((folder / "a" / "pose" / "000005.txt").read_text())
    assert "a/pose/000004.txt is another pose" in said(with_truth)
    pose.write_text(right)
    picture = folder / "b" / "rgb" / "000006.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:120])
    assert "b/rgb/000006.png is damaged" in said(settings(tmp_path / "run", sampler=str(folder)))
    picture.unlink()
    (folder / "b" / "pose" / "000006.txt").unlink()
    assert "b/rgb/000006.png is missing: this view is asked for" in said(with_truth)
    shutil.rmtree(folder / "b")
    assert "views/b is missing" in said(with_truth)
    shutil.rmtree(folder / "a")
    assert "has no scenes in it" in said(settings(tmp_path / "run", sampler=str(folder)))
    monkeypatch.setattr(MVDreamSampler, "__init__", lambda self, config: None)
    wordless = settings(tmp_path / "run", sampler="mvdream", scenes=with_truth.scenes)
    assert "draws from words" in said(wordless)


def test_a_dry_run_looks_for_the_views(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> str:
        code = cli.main(["--config", "consistency", *words, "--dry-run"])
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if not line.startswith("warning: ")]
        assert code == (2 if errors else 0) and len(errors) <= 1
        return "".join(errors)

    assert said(f"sampler={folder}") == "" == said(f"samplers={{a: {folder}, b: {folder}}}")
    own = f"scenes={{name: srn, path: {folder}}}"
    assert "scenes.condition: " in (few := said(f"sampler={folder}", own)) and "are from 0 to 23 (got 64)" in few
    assert "sampler.path: . has no scenes in it" in (above := said("sampler=.")) and "did you mean views," in above
    pose, picture = folder / "b" / "pose" / "000003.txt", folder / "b" / "rgb" / "000003.png"
    for path, spoilt, what in (
        (pose, b"1 2 3", "b/pose/000003.txt should hold the 16 numbers"),
        (picture, png(np.zeros((8, 8, 3), np.uint8)), "b/rgb/000003.png has 8 x 8 pixels"),
    ):
        whole = path.read_bytes()
        path.write_bytes(spoilt)
        assert what in said(f"sampler={folder}")
        path.write_bytes(whole)
    assert "scenes.path: there is no folder 'none'" in said(f"sampler={folder}", "scenes={name: srn, path: none}")
    assert "has no folder cars_test with scenes" in said(f"sampler={folder}", "scenes={name: srn, path: .}")
    (folder / "a" / "pose" / "000004.txt").unlink()
    assert "a/pose/000004.txt is missing" in said(f"sampler={folder}")
    for picture in (folder / "a" / "rgb").iterdir():
        picture.unlink()
    for pose in (folder / "a" / "pose").iterdir():
        pose.unlink()
    assert "a has 0 views, and at least 4 are needed" in said(f"sampler={folder}")
    (tmp_path / "empty").mkdir()
    assert said("sampler=empty").startswith("sampler.path: empty has no scenes in it")
    assert said("samplers={a: {name: folder, path: empty}}").startswith("samplers.a.path: empty has no scenes")
