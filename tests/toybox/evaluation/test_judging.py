import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.ball_run import ball_run, register
from tests.support.errors import refused
from threedgen.evaluation.metrics.figures import Proportion, equal_error
from threedgen.export.run_field import load_run_field
from threedgen.geometry.poses import orbit_array
from threedgen.toybox.evaluation.fidelity import roughness, surface
from threedgen.toybox.evaluation.held_out import held_out_cases
from threedgen.toybox.evaluation.judging import judge, tally
from threedgen.toybox.evaluation.labels import Labels
from threedgen.toybox.evaluation.probe import Answers
from threedgen.toybox.evaluation.report import label
from threedgen.toybox.world.grammar import Spec, held_out

LABELS = Labels.of_toybox()
TURN = np.deg2rad([0.0, 90.0, 180.0, 270.0])
SIDES = [0, 1, 2, 3]
SPEC = Spec("dog", "blue", "", "hat", "red")


def answers(
    noun: str = "dog", colour: str = "blue", part_colour: str = "red", sides: list[int] = SIDES, there: float = 0.9
) -> Answers:
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
    assert [figures[key] for key in ("noun", "order", "side")] == [Proportion(n, n) for n in (2, 1, 4)]


def test_equal_error_threshold() -> None:
    assert equal_error([0.4, 0.6, 0.8, 0.9], [0.1, 0.2, 0.3, 0.35]) == pytest.approx(0.35)
    assert equal_error([], [0.2]) == 0.5
    views = answers(there=0.3)
    assert judge(views, SPEC, LABELS, threshold=0.25).answers["bound"] is True
    assert judge(views, SPEC, LABELS).answers["bound"] is False


def test_cases_are_held_out_different_and_repeatable() -> None:
    cases = held_out_cases(90, 3)
    assert cases == held_out_cases(90, 3) != held_out_cases(90, 4)
    assert len({case.spec for case in cases}) == 90
    assert all(held_out(case.spec) and case.spec.part_colour for case in cases)
    asset = cases[0].build_truth(3)
    assert asset.noun == cases[0].spec.noun and asset.caption == cases[0].caption
    other = cases[0].build_truth(3, 1).primitives[0]
    assert not np.array_equal(asset.primitives[0].matrix, other.matrix)
    # spread cases use every noun in turn
    assert len({case.spec.noun for case in held_out_cases(30, 0, spread=True)}) == 30
    with refused(None, 10**5):
        held_out_cases(10**5, 0)


def test_roughness_is_the_mean_angle_between_neighbours() -> None:
    flat = np.broadcast_to([0.0, 0.6, 0.8], (2, 8, 8, 3))
    assert roughness(flat, np.ones((2, 8, 8), bool)) == pytest.approx(0, abs=1e-3)
    assert roughness(flat, np.zeros((2, 8, 8), bool)) is None
    normal = np.zeros((1, 4, 4, 3))
    normal[..., :2, 2] = normal[..., 2:, 0] = 1  # a right angle between columns 1 and 2
    left = np.zeros((1, 4, 4), bool)
    left[..., :2] = True
    assert roughness(normal, left) == 0, "pairs of the foreground only"
    assert roughness(normal, np.ones((1, 4, 4), bool)) == pytest.approx(90 * 4 / 24)


def test_surface_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ball of radius r at distance d: between pixels of angle a its normals turn by about a d / r, and faster
    towards the outline; its field is dense."""
    register(monkeypatch)
    view = load_run_field(ball_run(tmp_path / "run")).view
    found = surface(view, orbit_array(0.2, TURN, 2.6).astype(np.float32), np.deg2rad(40), 64, 64)
    assert found is not None and not found[1]
    middle = np.deg2rad(40) / 64 * 2.6
    assert found[0] is not None and np.rad2deg(middle) < found[0] < 20
