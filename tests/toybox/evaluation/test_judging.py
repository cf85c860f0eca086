"""Verdicts of a confident probe, and held-out cases."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tests.support.errors import refused
from threedgen.evaluation.metrics.figures import Share, equal_error
from threedgen.toybox.evaluation.held_out import held_out_cases, held_out_pairs
from threedgen.toybox.evaluation.judging import judge, tally
from threedgen.toybox.evaluation.labels import Labels
from threedgen.toybox.evaluation.probe import Answers
from threedgen.toybox.evaluation.report import label
from threedgen.toybox.world.grammar import NOUNS, Spec, held_out

LABELS = Labels.of_toybox()
TURN = np.deg2rad([0.0, 90.0, 180.0, 270.0])
SIDES = [0, 1, 2, 3]
SPEC = Spec("dog", "blue", "", "hat", "red")


def answers(
    noun: str = "dog", colour: str = "blue", part_colour: str = "red", sides: list[int] = SIDES, there: float = 0.9
) -> Answers:
    """Confident answers with a hat, equal for all views."""

    def certain(names: tuple[str, ...], name: str) -> torch.Tensor:
        logits = torch.zeros(len(sides), len(names))
        logits[:, names.index(name)] = 8
        return logits.log_softmax(1)

    colours = torch.zeros(len(sides), len(LABELS.words), 12)
    colours[..., LABELS.colours.index(part_colour)] = 8
    parts = torch.full((len(sides), len(LABELS.words)), 0.01)
    parts[0, LABELS.words.index("hat")] = there
    side = torch.zeros(len(sides), 4)
    side[torch.arange(len(sides)), sides] = 8
    azimuth = torch.tensor(sides) * (math.pi / 2)
    noun_, colour_ = certain(LABELS.nouns, noun), certain(LABELS.colours, colour)
    return Answers(noun_, colour_, parts, colours.log_softmax(-1), side.log_softmax(1), azimuth)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, set()),
        ({"noun": "cat"}, {"noun"}),
        ({"colour": "red"}, {"colour"}),
        ({"part_colour": "green"}, {"part_colour", "bound"}),
        ({"there": 0.2}, {"part", "bound"}),
        ({"sides": [0, 3, 2, 1]}, {"order", "each_side"}),
        ({"sides": [2, 3, 0, 1]}, {"order", "each_side"}),
    ],
)
def test_verdict_names_what_is_wrong(changes: dict, wrong: set[str]) -> None:
    verdict = judge(answers(**changes), SPEC, LABELS, TURN)
    assert {key for key, value in verdict.answers.items() if value is False} == wrong
    right = {"noun", "colour", "part", "part_colour", "bound", "order", "each_side"} - wrong
    assert all(verdict.answers[key] is True for key in right)
    if not wrong:
        assert verdict.azimuth_error == pytest.approx(0, abs=1e-4) and label(verdict) == "ok"
    if "part" in wrong:
        assert label(verdict) == "bound: blue dog, no hat"


def test_unspecified_properties_are_not_judged() -> None:
    verdict = judge(answers("ball", sides=[0, 0, 0, 0]), Spec("ball"), LABELS, TURN)
    assert set(verdict.answers) == {"noun", "noun_single"}
    figures = tally([verdict, judge(answers(), SPEC, LABELS, TURN)])
    assert figures["noun"] == Share(2, 2) and figures["order"] == Share(1, 1) and figures["side"] == Share(4, 4)


def test_equal_error_threshold() -> None:
    assert equal_error([0.4, 0.6, 0.8, 0.9], [0.1, 0.2, 0.3, 0.35]) == pytest.approx(0.35)
    threshold = equal_error([0.1, 0.3, 0.5, 0.7], [0.0, 0.05, 0.2, 0.4])
    assert np.mean(np.array([0.1, 0.3, 0.5, 0.7]) <= threshold) == np.mean(np.array([0.0, 0.05, 0.2, 0.4]) > threshold)
    assert equal_error([], [0.2]) == 0.5
    views = answers(there=0.3)
    assert judge(views, SPEC, LABELS, threshold=0.25).answers["bound"] is True
    assert judge(views, SPEC, LABELS).answers["bound"] is False


def test_cases_are_held_out_different_and_repeatable() -> None:
    cases = held_out_cases(90, 3)
    assert cases == held_out_cases(90, 3) != held_out_cases(90, 4)
    assert len({case.spec for case in cases}) == 90
    assert all(held_out(case.spec) and case.spec.part_colour for case in cases)
    asset = cases[0].truth(3)
    assert asset.noun == cases[0].spec.noun and asset.caption == cases[0].caption
    other = cases[0].truth(3, 1).primitives[0]
    assert not np.array_equal(asset.primitives[0].matrix, other.matrix)


def test_spread_cases_use_every_noun_in_turn() -> None:
    assert len({case.spec.noun for case in held_out_cases(30, 0, spread=True)}) == 30
    known = held_out_pairs()
    counts = Counter(case.spec.noun for case in held_out_cases(len(known) + 4, 0, spread=True))
    assert set(counts) == set(known) <= set(NOUNS) and max(counts.values()) <= 2
    with refused(None, 10**5):
        held_out_cases(10**5, 0)
