"""The probe: what it is told about toybox pictures, how it learns, and its files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_classifiers import TINY, tiny_probe
from threedgen.config import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.data.toybox.grammar import ACCESSORIES, NOUNS, Spec, held_out
from threedgen.data.toybox.world import build, render_azimuths
from threedgen.evaluation.toybox import options, training
from threedgen.evaluation.toybox.labels import (
    OPEN,
    Labels,
    ProbeToybox,
    Truth,
    labelled,
    nearest_colour,
    picture_truth,
    word_colours,
)
from threedgen.evaluation.toybox.options import ProbeNetworkConfig, TrainProbeConfig
from threedgen.evaluation.toybox.probe import Answers, Logits, Probe, combine_views, prepare

LABELS = Labels.of_toybox()


def one(spec: Spec, seed: int = 0):
    return build(spec, np.random.default_rng(seed))


def truth_of(spec: Spec, azimuths: list[float]) -> Truth:
    asset = one(spec)
    picture = render_azimuths(asset, azimuths, 64, with_gbuffer=True)
    return picture_truth([asset], picture.label, np.deg2rad(azimuths), LABELS)


# --- truth -------------------------------------------------------------------------------------------------------


def test_every_part_of_every_noun_can_be_seen_where_a_caption_says_it() -> None:
    for word, noun in NOUNS.items():
        for k, part in enumerate(noun.parts + noun.wears):
            asset = one(Spec(word, "red", "", part, "blue"), k)
            assert word_colours(asset, LABELS)[part] == LABELS.colours.index("blue"), (word, part)
            assert part in asset.labels, (word, part)


def test_truth_says_what_each_view_shows() -> None:
    truth = truth_of(Spec("television", "blue", "", "screen", "red"), [0, 180])
    screen, hat = LABELS.words.index("screen"), LABELS.words.index("hat")
    assert truth.noun.tolist() == [LABELS.nouns.index("television")] * 2
    assert truth.colour.tolist() == [LABELS.colours.index("blue")] * 2
    assert truth.seen[0, screen] == 1 and truth.part_colour[0, screen] == LABELS.colours.index("red")
    assert truth.seen[1, screen] == 0 and truth.part_colour[1, screen] == OPEN
    assert truth.seen[:, hat].tolist() == [0, 0]
    assert truth.front.all() and truth.azimuth.tolist() == pytest.approx([0, math.pi])


def test_a_colour_that_the_caption_leaves_open_is_not_asked() -> None:
    truth = truth_of(Spec("ball"), [30])
    assert truth.colour.tolist() == [OPEN] and not truth.front.any()
    flat = Logits(
        *(torch.zeros(1, n) for n in (76, 12, 1)), torch.zeros(1, 1, 12), torch.zeros(1, 4), torch.zeros(1, 2)
    )
    none = Truth(
        truth.noun,
        truth.colour,
        truth.seen[:, :1] * 0 + OPEN,
        truth.part_colour[:, :1] * 0 + OPEN,
        truth.azimuth,
        truth.front,
    )
    _, metrics = training.probe_loss(flat, none)
    assert metrics["loss_colour"] == metrics["loss_side"] == metrics["loss_heading"] == 0
    assert metrics["loss_noun"] == pytest.approx(math.log(76), rel=1e-5)


def test_nearest_colour_knows_when_two_are_as_near() -> None:
    assert LABELS.colours[nearest_colour(np.array([0.9, 0.1, 0.05]))] == "red"
    red, orange = np.array([0.85, 0.10, 0.10]), np.array([0.98, 0.50, 0.05])
    assert nearest_colour((red + orange) / 2) == OPEN


# --- network -----------------------------------------------------------------------------------------------------


def test_the_shipped_size_fits_into_two_megabytes(tmp_path: Path) -> None:
    big = Probe(LABELS)
    assert sum(p.numel() for p in big.parameters()) <= 900_000
    big.save(tmp_path / "probe.safetensors")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 1000**2


def test_it_looks_at_pictures_of_any_size_and_never_learns_from_it() -> None:
    probe = tiny_probe()
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    for size in (16, 32, 50, 128):
        seen = probe.classify(torch.rand(3, size, size, 3), chunk=2)
        assert seen.noun.shape == (3, 76) and seen.part_colour.shape == (3, len(LABELS.words), 12)
        assert torch.allclose(seen.side.exp().sum(1), torch.ones(3), atol=1e-5)
    assert probe.training
    assert all(torch.equal(value, before[name]) for name, value in probe.state_dict().items())
    with pytest.raises(ValueError, match="square"):
        prepare(torch.rand(1, 8, 9, 3), 32)


def test_larger_pictures_are_averaged() -> None:
    x = torch.rand(1, 64, 64, 3)
    blocks = x.reshape(1, 32, 2, 32, 2, 3).mean((2, 4)).permute(0, 3, 1, 2)
    assert torch.allclose(prepare(x, 32), blocks, atol=1e-6)


def test_views_are_put_together() -> None:
    half, sure = math.log(0.5), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    views = Answers(
        noun=torch.tensor([[half, half], [math.log(0.9), math.log(0.1)]]),
        colour=sure.log(),
        part=torch.tensor([[0.99], [0.01]]),  # the first view shows it, and says what its colour is
        part_colour=sure.log()[:, None],
        side=torch.zeros(2, 4),
        azimuth=torch.zeros(2),
    )
    seen = combine_views(views)
    assert seen.noun.tolist() == pytest.approx([(half + math.log(0.9)) / 2, (half + math.log(0.1)) / 2])
    assert seen.part.tolist() == pytest.approx([0.99])
    assert seen.part_colour[0, 0] == pytest.approx(0.99 * math.log(0.9) + 0.01 * math.log(0.2), abs=1e-5)


def test_it_learns_three_things() -> None:
    """Noun, colour and side, from nothing, on other samples than it is asked about."""
    specs = [Spec("car", "red"), Spec("tree", "green"), Spec("penguin", "blue")]

    def batch(seed: int) -> tuple[torch.Tensor, Truth]:
        pictures, truths = [], []
        for spec in specs:
            asset = one(spec, seed)
            angles = np.random.default_rng(seed).uniform(0, 360) + np.array([0.0, 90.0, 180.0, 270.0])
            picture = render_azimuths(asset, angles, 32, with_gbuffer=True)
            pictures.append(torch.from_numpy(picture.rgb))
            truths.append(picture_truth([asset], picture.label, np.deg2rad(angles), LABELS))
        return torch.cat(pictures), Truth.cat(truths)

    probe = tiny_probe()
    optimizer = torch.optim.AdamW(probe.parameters(), 5e-3)
    rng = torch.Generator().manual_seed(0)
    for step in range(60):
        pictures, truth = batch(step % 20)
        x = training.augment(pictures.permute(0, 3, 1, 2), rng, 0.5)
        loss, _ = training.probe_loss(probe(x), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pictures, truth = batch(1234)
    seen = probe.classify(pictures)
    assert (seen.noun.argmax(1) == truth.noun).float().mean() > 0.8
    assert (seen.colour.argmax(1) == truth.colour).float().mean() > 0.8


# --- augmentation ------------------------------------------------------------------------------------------------


def test_augmentation_is_repeatable_and_can_be_off() -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    first, again, other = (training.augment(x, torch.Generator().manual_seed(seed)) for seed in (2, 2, 3))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0 <= first.min() and first.max() <= 1
    assert training.augment(x, torch.Generator(), 0) is x


def test_augmentation_never_mirrors() -> None:
    x = torch.zeros(16, 3, 32, 32)
    x[..., 4:12] = 1  # left half bright
    y = training.augment(x, torch.Generator().manual_seed(0))
    assert (y[..., :16].mean((1, 2, 3)) > y[..., 16:].mean((1, 2, 3)) + 0.2).all()


# --- files -------------------------------------------------------------------------------------------------------


def test_a_saved_probe_says_the_same(tmp_path: Path) -> None:
    probe, pictures = tiny_probe(), torch.rand(2, 32, 32, 3)
    probe.threshold = 0.25
    probe.save(tmp_path / "toybox-probe.safetensors", {"steps": 7})
    again = Probe.load(str(tmp_path))
    assert torch.allclose(again.classify(pictures).noun, probe.classify(pictures).noun, atol=1e-2)
    assert again.labels == LABELS and again.threshold == 0.25
    assert read_json(tmp_path / "toybox-probe.json")["steps"] == 7
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_missing_and_damaged_probes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "folder", lambda name: tmp_path / "nothing")
    with pytest.raises(ConfigError, match="lacks toybox-probe.*train-toybox-probe"):
        Probe.load("embedded")
    with pytest.raises(ConfigError, match="there is no file .*train-toybox-probe"):
        Probe.load(str(tmp_path / "x.safetensors"))
    path = tmp_path / "toybox-probe.safetensors"
    tiny_probe().save(path)
    whole, card = path.read_bytes(), path.with_suffix(".json").read_text()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        Probe.load(str(path))
    path.write_bytes(whole)
    tree = json.loads(card)
    tree["labels"]["nouns"] = tree["labels"]["nouns"][:-1]
    path.with_suffix(".json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="damaged"):
        Probe.load(str(path))
    fewer = Labels(LABELS.nouns[1:], LABELS.colours, LABELS.words)
    Probe(fewer, TINY).save(path)
    with pytest.raises(ConfigError, match=f"older toybox, without {LABELS.nouns[0]};"):
        Probe.load(str(path))
    path.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match="missing or damaged"):
        Probe.load(str(path))


# --- the task ----------------------------------------------------------------------------------------------------


def config(out: Path, steps: int) -> TrainProbeConfig:
    return TrainProbeConfig(
        task="train-probe",
        out=str(out),
        threads=1,
        measured=4,
        calibrated=20,
        network=TINY,
        training={"block": 2, "blocks": 2, "window": 3, "learning_rate": 1e-3, "bf16": False},
        trainer={"max_steps": steps, "accelerator": "cpu", "val_check_interval": 0, "log_every_n_steps": 1},
        checkpoint={"seconds": 1000},
    )  # type: ignore[call-arg]


def test_training_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert training.run_probe(config(whole, 5), quiet=True) == 0
    assert training.run_probe(config(parts, 3), quiet=True) == 0
    assert training.run_probe(config(parts, 5), resume=parts, quiet=True) == 0
    one, other = ((folder / "probe" / "toybox-probe.safetensors").read_bytes() for folder in (whole, parts))
    assert one == other
    card = read_json(whole / "probe" / "toybox-probe.json")
    assert card["steps"] == 5 and card["accuracy"]["noun"]["total"] == 4
    assert 0 <= card["accuracy"]["side"]["low"] <= card["accuracy"]["side"]["high"] <= 1


def test_blocks_are_seen_again_but_never_mixed_up() -> None:
    system = training.ProbeSystem(config(Path("unused"), 5))
    rgb, truth = system.pictures(4)
    assert rgb.shape == (8, 3, 32, 32) and len(truth.noun) == 8  # two blocks of two objects, two views each
    fresh, newest = system.pictures(5)
    assert set(system.cache) <= {3, 4, 5}
    assert not torch.equal(fresh[:4], rgb[:4])
    _, pictures, told = labelled(ProbeToybox(0), [10, 11], 32, 2, LABELS)
    assert torch.equal(newest.noun[:4], told.noun) and torch.equal(newest.azimuth[:4], told.azimuth)
    assert torch.allclose(fresh[:4].permute(0, 2, 3, 1), torch.from_numpy(pictures), atol=0.5 / 255 + 1e-6)


def test_lessons_hold_every_accessory_and_held_out_combinations() -> None:
    specs = [ProbeToybox(1).spec(k)[0] for k in range(1500)]
    worn = [spec for spec in specs if spec.part in ACCESSORIES]
    assert {spec.part for spec in worn} == set(ACCESSORIES) and 0.2 < len(worn) / len(specs) < 0.5
    assert {spec.noun for spec in specs} == set(NOUNS)
    assert any(held_out(spec) for spec in specs) and not all(held_out(spec) for spec in specs if spec.part)


def test_a_probe_can_go_on_from_another(tmp_path: Path) -> None:
    tiny_probe(5).save(tmp_path / "toybox-probe.safetensors")
    system = training.ProbeSystem(config(tmp_path / "run", 1).model_copy(update={"start": str(tmp_path)}))
    system.start()
    assert torch.allclose(system.net.there, tiny_probe(5).there, atol=1e-3)
    other = ProbeNetworkConfig(image_size=32, channels=(8, 16, 16, 24))
    Probe(LABELS, other).save(tmp_path / "toybox-probe.safetensors")
    with pytest.raises(ConfigError, match="start: .*sizes"):
        system.start()
    (tmp_path / "toybox-probe.safetensors").unlink()
    with pytest.raises(ConfigError, match="^start: there is no file"):
        system.start()
