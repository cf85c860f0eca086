"""The judge on a probe that is sure of what it sees, and the cases that it is asked about."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from threedgen.config import ConfigError
from threedgen.data.toybox.grammar import NOUNS, Spec, held_out
from threedgen.evaluation.metrics.figures import Share
from threedgen.evaluation.toybox.held_out import held_out_cases, held_out_rooms
from threedgen.evaluation.toybox.judging import equal_error, judge, tally
from threedgen.evaluation.toybox.labels import Labels
from threedgen.evaluation.toybox.probe import Answers
from threedgen.evaluation.toybox.report import mark

LABELS = Labels.of_toybox()
TURN = np.deg2rad([0.0, 90.0, 180.0, 270.0])


def seen(noun: str, colour: str, part: str, part_colour: str, sides: list[int], there: float = 0.9) -> Answers:
    """A sure probe that sees the same in all views."""

    def sure(names: tuple[str, ...], name: str) -> torch.Tensor:
        logits = torch.zeros(len(sides), len(names))
        logits[:, names.index(name)] = 8
        return logits.log_softmax(1)

    painted = torch.zeros(len(sides), len(LABELS.words), 12)
    painted[..., LABELS.colours.index(part_colour)] = 8
    parts = torch.full((len(sides), len(LABELS.words)), 0.01)
    parts[0, LABELS.words.index(part)] = there
    side = torch.zeros(len(sides), 4)
    side[torch.arange(len(sides)), sides] = 8
    return Answers(
        sure(LABELS.nouns, noun),
        sure(LABELS.colours, colour),
        parts,
        painted.log_softmax(-1),
        side.log_softmax(1),
        torch.tensor(sides) * (math.pi / 2),
    )


SPEC = Spec("dog", "blue", "", "hat", "red")


def test_a_right_object() -> None:
    verdict = judge(seen("dog", "blue", "hat", "red", [0, 1, 2, 3]), SPEC, LABELS, TURN)
    asked = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side")
    assert all(verdict.answers[key] is True for key in asked)
    assert verdict.azimuth_error == pytest.approx(0, abs=1e-4) and mark(verdict) == "ok"


def test_wrong_objects_are_wrong_in_what_is_wrong() -> None:
    cases: list[tuple[Answers, set[str]]] = [
        (seen("cat", "blue", "hat", "red", [0, 1, 2, 3]), {"noun"}),
        (seen("dog", "red", "hat", "red", [0, 1, 2, 3]), {"colour"}),
        (seen("dog", "blue", "hat", "green", [0, 1, 2, 3]), {"part_colour", "bound"}),
        (seen("dog", "blue", "hat", "red", [0, 1, 2, 3], there=0.2), {"part", "bound"}),
        (seen("dog", "blue", "hat", "red", [0, 3, 2, 1]), {"order", "each_side"}),
        (seen("dog", "blue", "hat", "red", [2, 3, 0, 1]), {"order", "each_side"}),
    ]
    for views, wrong in cases:
        verdict = judge(views, SPEC, LABELS, TURN)
        assert {key for key, value in verdict.answers.items() if value is False} == wrong
    assert mark(judge(cases[3][0], SPEC, LABELS, TURN)) == "bound: blue dog, no hat"


def test_what_a_caption_leaves_open_and_things_without_a_front_are_not_asked() -> None:
    verdict = judge(seen("ball", "blue", "hat", "red", [0, 0, 0, 0]), Spec("ball"), LABELS, TURN)
    assert set(verdict.answers) == {"noun", "noun_single"}
    figures = tally([verdict, judge(seen("dog", "blue", "hat", "red", [0, 1, 2, 3]), SPEC, LABELS, TURN)])
    assert figures["noun"] == Share(2, 2) and figures["order"] == Share(1, 1) and figures["side"] == Share(4, 4)


def test_the_threshold_misses_as_much_as_it_imagines() -> None:
    assert equal_error([0.4, 0.6, 0.8, 0.9], [0.1, 0.2, 0.3, 0.35]) == pytest.approx(0.35)
    threshold = equal_error([0.1, 0.3, 0.5, 0.7], [0.0, 0.05, 0.2, 0.4])
    assert np.mean(np.array([0.1, 0.3, 0.5, 0.7]) <= threshold) == np.mean(np.array([0.0, 0.05, 0.2, 0.4]) > threshold)
    assert equal_error([], [0.2]) == 0.5
    views = seen("dog", "blue", "hat", "red", [0, 1, 2, 3], there=0.3)
    assert judge(views, SPEC, LABELS, threshold=0.25).answers["bound"] is True
    assert judge(views, SPEC, LABELS).answers["bound"] is False


# --- cases -------------------------------------------------------------------------------------------------------


def test_cases_are_held_out_different_and_always_the_same() -> None:
    cases = held_out_cases(90, 3)
    assert cases == held_out_cases(90, 3) != held_out_cases(90, 4)
    assert len({case.spec for case in cases}) == 90
    assert all(held_out(case.spec) and case.spec.part_colour for case in cases)
    asset = cases[0].truth(3)
    assert asset.noun == cases[0].spec.noun and asset.caption == cases[0].caption
    other = cases[0].truth(3, 1).primitives[0]
    assert not np.array_equal(asset.primitives[0].matrix, other.matrix)


def test_spread_cases_take_every_noun_in_turn() -> None:
    cases = held_out_cases(30, 0, spread=True)
    assert len({case.spec.noun for case in cases}) == 30
    known = held_out_rooms()
    counts = Counter(case.spec.noun for case in held_out_cases(len(known) + 4, 0, spread=True))
    assert set(counts) == set(known) <= set(NOUNS) and max(counts.values()) <= 2
    with pytest.raises(ConfigError, match="at most"):
        held_out_cases(10**5, 0)
