import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import janus_stub
from tests.support.tiny_classifiers import tiny_clip
from tests.support.tiny_prior import letter_tokenizer
from threedgen import cli, config
from threedgen.config import registry
from threedgen.data.coloured_mesh import ColouredMesh
from threedgen.evaluation.janus.meter import KnownObject, Meter, MeterErrors, Reading, clip_input, view_labels
from threedgen.evaluation.janus.options import CLIPSidesConfig, JanusMeterConfig, MeterConfig, front_objects
from threedgen.evaluation.metrics.fronts import RingResult
from threedgen.evaluation.runner import measure_all
from threedgen.export.files.glb import save_glb
from threedgen.toybox.evaluation.held_out import clear_nouns, held_out_cases
from threedgen.toybox.world.grammar import NOUNS, Spec, held_out
from threedgen.toybox.world.toybox import build, toybox_mesh
from threedgen.train.task import Task


def dog() -> ColouredMesh:
    return toybox_mesh(build(Spec("dog", "blue"), np.random.default_rng(0)))


@pytest.fixture(autouse=True)
def stub() -> None:
    janus_stub.register()


def test_toybox_prompts_have_a_front_and_are_held_out() -> None:
    prompts = front_objects().prompts(36, 0)
    cases = held_out_cases(36, 0, spread=True, nouns=clear_nouns())
    assert len({*prompts}) == 36 and [case.caption for case in cases] == prompts
    assert all(held_out(case.spec) and NOUNS[case.spec.noun].front for case in cases)


def test_clip_probabilities_match_its_forward_pass(tmp_path: Path) -> None:
    from transformers import CLIPModel

    clip = tiny_clip(tmp_path)
    classifier = registry.build("view-classifier", CLIPSidesConfig(weights=str(clip)))
    views = torch.rand(5, 40, 40, 3, generator=torch.Generator().manual_seed(1))
    found = classifier.sides(views, "a dog")
    sides = ("front view", "side view facing left", "back view", "side view facing right",
             "without a front, the same from all sides")  # fmt: skip
    sentences = [f"a dog, {side}" for side in sides]
    tokens = letter_tokenizer()(sentences, padding=True, return_tensors="pt", max_length=48, truncation=True)
    with torch.no_grad():
        net = CLIPModel.from_pretrained(clip).eval()
        expected = net(pixel_values=clip_input(views, 32), **tokens).logits_per_image.softmax(1)
    torch.testing.assert_close(found, expected[:, :4], atol=1e-5, rtol=1e-4)
    assert (found.sum(1) < 1).all()
    assert (found.argmax(1) != found.argmax(1)[0]).any() or found.std(0).max() > 1e-4
    long = classifier.sides(views, "a dog " * 200)  # cut off at CLIP's maximum
    assert long.shape == (5, 4) and torch.isfinite(long).all()
    meter = Meter(MeterConfig(classifier=CLIPSidesConfig(weights=str(clip)), size=32))
    reading = meter.classify(dog(), "a dog")
    assert reading.views.shape == (8, 32, 32, 3) and len(view_labels(reading.sides)) == 8
    calls: list[int] = []
    meter.classifier.net.text_model.register_forward_pre_hook(lambda *_: calls.append(1))
    one, other = (meter.likeness(views.numpy(), ["a dog", "a cat"]) for views in (views, views[:2]))
    assert one and other and len(one) == 2 and one != other and len(calls) == 1  # texts are encoded once


def test_probe_recognises_sides_and_noun() -> None:
    meter = Meter(MeterConfig())
    reading = meter.classify(dog(), "a blue dog", light=True)
    result = meter.evaluate(reading.sides)
    assert result.fronts == 1 and sum(result.correct) >= 7 and view_labels(reading.sides)[0].startswith("front")
    likeness = meter.likeness(reading.views, ["a red car", "a blue dog", "a green fish"])
    assert likeness is not None and int(np.argmax(likeness)) == 1
    for prompts in (["a unicorn"], ["a dog", "a blue dog"], ["a blue dog", "a blue dog with a red hat"]):
        assert meter.likeness(reading.views, prompts) is None, prompts
    assert meter.likeness(reading.views, ["a red dog", "a blue dog"]) is not None


def stub_errors(out: Path, **truth: object) -> MeterErrors:
    meter = {"classifier": {"name": "stub"}, "size": 24}
    values = {"task": "janus-meter", "out": str(out), "meter": meter, "truth": truth}
    return MeterErrors(Task(JanusMeterConfig.model_validate(values), quiet=True))


def test_two_versions_of_an_object_are_not_independent(tmp_path: Path) -> None:
    errors, none = stub_errors(tmp_path), Reading(np.zeros((8, 4, 4, 3)), np.zeros((8, 4)))
    known = [
        KnownObject("a car", fronts, none, RingResult(found and fronts, 0.0, (), ()))
        for found in (0, 1, 1, 1)
        for fronts in (1, 2)
    ]
    missed = errors.rates(known).front_missed
    assert (missed.hits, missed.total) == (2, 8) and missed.interval == (0.0, 0.75)


def test_errors_on_files_with_known_fronts(tmp_path: Path) -> None:
    """Boxes with one front, and two of four with two fronts: half of the alarms are false."""
    for name, fronts in (("a-blue_box.glb", 1), ("b.glb", 1), ("c.glb", 2), ("d.glb", 2)):
        save_glb(janus_stub.box(fronts), tmp_path / name)
    errors = stub_errors(tmp_path, assets=str(tmp_path), objects=10)
    measured = measure_all(errors)
    rates = errors.rates(measured)
    assert errors.total == len(measured) == 8 and measured[0].prompt == "a blue box"
    assert (rates.false_alarms.hits, rates.false_alarms.total) == (2, 4)
    assert (rates.recall.hits, rates.recall.total) == (4, 4)
    assert (rates.front_missed.hits, rates.front_missed.total) == (0, 8)
    assert rates.front_invented.total == 0


def test_errors_on_rough_objects(tmp_path: Path) -> None:
    smooth, shaken = (measure_all(stub_errors(tmp_path, objects=2, rough=strength)) for strength in (0, 1))
    assert [one.fronts for one in smooth] == [1, 2, 1, 2, 0, 0]
    for one, other in zip(smooth, shaken, strict=True):
        assert one.prompt == other.prompt and (one.reading.views != other.reading.views).any()


def test_errors_of_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["truth.objects=6", f"out={tmp_path / 'run'}", "threads=1"]
    assert cli.main(["--config", "janus-meter", *words]) == 0
    assert "false alarms" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "meter.json").read_text())
    assert found["false_alarms"]["total"] == found["recall"]["total"] == found["front_invented"]["total"] == 6
    assert found["recall"]["hits"] >= 4 > found["false_alarms"]["hits"] and found["front_missed"]["total"] == 12
    assert found["front_invented"]["hits"] == 0 and 0.9 < found["direction_accuracy"]["share"] <= 1
    assert (tmp_path / "run" / "sheet.png").is_file() and (tmp_path / "run" / "meter.md").is_file()


def test_mistakes_are_named_by_key(refuses, tmp_path: Path) -> None:
    for name in ("assets", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "assets" / "a-blue-dog.ply").write_bytes(b"")
    score = ["--config", "janus-score", f"assets={tmp_path / 'assets'}", "meter.classifier.name=probe"]
    for words, values in (
        (["--config", "janus-meter", f"truth.assets={tmp_path / 'none'}"], ("truth.assets",)),
        (["--config", "janus-score", f"assets={tmp_path / 'empty'}"], ("assets: ", "empty")),
        ([*score, "prompts={a-blue-dgo: a cat}"], ("prompts", "'a-blue-dgo'", "'a-blue-dog'")),
    ):
        refuses([*words, f"out={tmp_path / 'run'}"], *values)


def test_missing_clip_is_found_before_any_work(no_hub, tmp_path: Path, monkeypatch, refuses) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "dog.glb").write_bytes(b"")
    for weights in ([], ["meter.classifier.weights=nowhere/clip"], ["meter.classifier.weights=no such folder"]):
        error = refuses(["--config", "janus-score", "assets=assets", "out=run", *weights], "classifier.name=probe")
        assert error.startswith("meter.classifier.weights: ")
    assert not (tmp_path / "run").exists()
    config.load("janus-score", ["assets=assets", "meter.classifier.name=probe"]).check()
