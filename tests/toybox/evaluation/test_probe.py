import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support.errors import refused
from tests.support.tiny_classifiers import TINY, tiny_probe
from threedgen.config.plain_file import read_json
from threedgen.guidance.weights import loading
from threedgen.toybox.evaluation import training
from threedgen.toybox.evaluation.labels import UNKNOWN_LABEL, Labels, Truth, image_truth, nearest_colour
from threedgen.toybox.evaluation.networks import prepare
from threedgen.toybox.evaluation.options import ProbeFeaturesConfig, ProbeNetworkConfig, TrainProbeConfig
from threedgen.toybox.evaluation.probe import Answers, Logits, Probe, ProbeFeatures, combine_views
from threedgen.toybox.world.grammar import NOUNS, Spec
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.toybox import build, render_azimuths

LABELS = Labels.of_toybox()


def asset_of(spec: Spec, seed: int = 0) -> Asset:
    return build(spec, np.random.default_rng(seed))


def truth_of(spec: Spec, degrees: list[float]) -> Truth:
    asset = asset_of(spec)
    render = render_azimuths(asset, degrees, 64, with_gbuffer=True)
    return image_truth([asset], render.label, np.deg2rad(degrees), LABELS)


def test_labels_depend_on_the_view() -> None:
    truth = truth_of(Spec("television", "blue", "", "screen", "red"), [0, 180])
    screen, hat = LABELS.words.index("screen"), LABELS.words.index("hat")
    assert truth.noun.tolist() == [LABELS.nouns.index("television")] * 2
    assert truth.colour.tolist() == [LABELS.colours.index("blue")] * 2
    assert truth.seen[0, screen] == 1 and truth.part_colour[0, screen] == LABELS.colours.index("red")
    assert truth.seen[1, screen] == 0 and truth.part_colour[1, screen] == UNKNOWN_LABEL
    assert truth.seen[:, hat].tolist() == [0, 0]
    assert truth.front.all() and truth.azimuth.tolist() == pytest.approx([0, math.pi])


def test_loss_ignores_unspecified_labels_and_colours() -> None:
    truth = truth_of(Spec("ball"), [30])
    assert truth.colour.tolist() == [UNKNOWN_LABEL] and not truth.front.any()
    flat = Logits(*(torch.zeros(1, *shape) for shape in ((len(NOUNS),), (12,), (1,), (1, 12), (4,), (2,))))
    open_part = torch.full((1, 1), UNKNOWN_LABEL)
    _, metrics = training.probe_loss(
        flat, Truth(truth.noun, truth.colour, open_part, open_part, truth.azimuth, truth.front)
    )
    assert metrics["loss_colour"] == metrics["loss_side"] == metrics["loss_heading"] == 0
    assert metrics["loss_noun"] == pytest.approx(math.log(len(NOUNS)), rel=1e-5)
    assert LABELS.colours[nearest_colour(np.array([0.9, 0.1, 0.05]))] == "red"
    red, orange = np.array([0.85, 0.10, 0.10]), np.array([0.98, 0.50, 0.05])
    assert nearest_colour((red + orange) / 2) == UNKNOWN_LABEL  # between two names


def test_loss_of_right_answers_is_small() -> None:
    truth = truth_of(Spec("television", "blue", "", "screen", "red"), [0, 90, 180, 270])

    def certain(target: torch.Tensor, count: int) -> torch.Tensor:
        return 20 * F.one_hot(target.clamp(min=0), count).float()

    right = Logits(
        noun=certain(truth.noun, len(NOUNS)),
        colour=certain(truth.colour, 12),
        seen=40 * truth.seen - 20.0,
        part_colour=certain(truth.part_colour, 12),
        side=20 * torch.eye(4),  # front, left, back, right
        heading=torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]),
    )
    loss, metrics = training.probe_loss(right, truth)
    assert loss < 1e-4 and all(metrics[key] == 1 for key in ("noun", "colour", "side", "part_colour"))


def test_classify_takes_images_of_any_size() -> None:
    probe = tiny_probe()
    for size in (16, 50):
        answers = probe.classify(torch.rand(3, size, size, 3), chunk=2)
        assert answers.noun.shape == (3, len(NOUNS)) and answers.part_colour.shape == (3, len(LABELS.words), 12)
        assert torch.allclose(answers.side.exp().sum(1), torch.ones(3), atol=1e-5)
    x = torch.rand(1, 64, 64, 3)
    blocks = x.reshape(1, 32, 2, 32, 2, 3).mean((2, 4)).permute(0, 3, 1, 2)
    assert torch.allclose(prepare(x, 32), blocks, atol=1e-6)
    with refused(None, (1, 8, 9, 3), kind=ValueError):
        prepare(torch.rand(1, 8, 9, 3), 32)


def test_combine_views_weights_colours_by_visibility() -> None:
    half, colours = math.log(0.5), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    views = Answers(
        noun=torch.tensor([[half, half], [math.log(0.9), math.log(0.1)]]),
        colour=colours.log(),
        part=torch.tensor([[0.99], [0.01]]),  # visible in the first view
        part_colour=colours.log()[:, None],
        side=torch.zeros(2, 4),
        azimuth=torch.zeros(2),
    )
    combined = combine_views(views)
    assert combined.noun.tolist() == pytest.approx([(half + math.log(0.9)) / 2, (half + math.log(0.1)) / 2])
    assert combined.part.tolist() == pytest.approx([0.99])
    assert combined.part_colour[0, 0] == pytest.approx(0.99 * math.log(0.9) + 0.01 * math.log(0.2), abs=1e-5)


def test_augmentation_never_mirrors() -> None:
    x = torch.zeros(16, 3, 32, 32)
    x[..., 4:12] = 1  # bright on the left
    y = training.augment(x, torch.Generator().manual_seed(0))
    assert 0 <= y.min() and y.max() <= 1
    assert (y[..., :16].mean((1, 2, 3)) > y[..., 16:].mean((1, 2, 3)) + 0.2).all()


def test_saved_probe_gives_the_same_answers(tmp_path: Path) -> None:
    probe, images = tiny_probe(), torch.rand(2, 32, 32, 3)
    probe.threshold = 0.25
    probe.save(tmp_path / "toybox-probe.safetensors", {"steps": 7})
    again = Probe.load(str(tmp_path))
    assert torch.allclose(again.classify(images).noun, probe.classify(images).noun, atol=1e-2)
    assert again.labels == LABELS and again.threshold == 0.25
    assert read_json(tmp_path / "toybox-probe.json")["steps"] == 7
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_missing_and_damaged_probes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "folder", lambda name: tmp_path / "nothing")
    path = tmp_path / "toybox-probe.safetensors"

    def load(weights: str, *values: object) -> None:
        with refused("probe.weights", *values, "train-toybox-probe"):
            Probe.load(weights)

    with refused("probe.weights", "toybox-probe", "[weights]"):
        Probe.load("embedded")
    tiny_probe().save(path)
    path.write_bytes(path.read_bytes()[:1000])
    load(str(path), path)
    Probe(Labels(LABELS.nouns[1:], LABELS.colours, LABELS.words), TINY).save(path)
    load(str(path), LABELS.nouns[0])
    features = ProbeFeatures(ProbeFeaturesConfig(weights=str(path)))  # do not need all nouns
    assert features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).logits.shape == (1, len(NOUNS) - 1)


def config(out: Path, steps: int) -> TrainProbeConfig:
    small = {"learning_rate": 1e-3}
    trainer = {"max_steps": steps, "accelerator": "cpu", "val_check_interval": 0, "log_every_n_steps": 1}
    values = {"task": "train-probe", "out": str(out), "threads": 1, "network": TINY, "training": small}
    return TrainProbeConfig.model_validate(values | {"trainer": trainer, "checkpoint": {"seconds": 1000}})


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"OBJECTS_PER_BLOCK": 2, "BLOCKS": 2, "WINDOW": 3, "TEST_OBJECTS": 4, "CALIBRATION_OBJECTS": 20}
    for name, value in small.items():
        monkeypatch.setattr(training, name, value)


@pytest.mark.usefixtures("small_blocks")
def test_resumed_training_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert training.run_probe(config(whole, 5), quiet=True) == 0
    assert training.run_probe(config(parts, 3), quiet=True) == 0
    assert training.run_probe(config(parts, 5), resume=parts, quiet=True) == 0
    one, other = ((folder / "probe" / "toybox-probe.safetensors").read_bytes() for folder in (whole, parts))
    assert one == other
    card = read_json(whole / "probe" / "toybox-probe.json")
    assert card["steps"] == 5 and card["accuracy"]["noun"]["total"] == 4
    assert 0 <= card["accuracy"]["side"]["low"] <= card["accuracy"]["side"]["high"] <= 1


@pytest.mark.usefixtures("small_blocks")
def test_run_without_checkpoint_resumes_from_the_initial_weights(tmp_path: Path) -> None:
    tiny_probe(5).save(tmp_path / "toybox-probe.safetensors")
    options = config(tmp_path / "run", 1)
    still = options.training.model_copy(update={"learning_rate": 0.0})
    options = options.model_copy(update={"start": str(tmp_path), "training": still})
    assert training.run_probe(options, resume=tmp_path / "run", quiet=True) == 0
    assert torch.allclose(Probe.load(str(tmp_path / "run" / "probe")).there, tiny_probe(5).there, atol=1e-3)
    Probe(LABELS, ProbeNetworkConfig(image_size=32, channels=(8, 16, 16, 24))).save(
        tmp_path / "toybox-probe.safetensors"
    )
    with refused("start"):
        training.ProbeSystem(options).start()
