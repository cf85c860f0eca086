"""The arithmetic of the evaluations on hand-made cases, and the two tasks on tiny priors and made-up runs."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.tiny_prior import tiny_prior
from threedgen.config import ConfigError, registry
from threedgen.data.toybox.grammar import NOUNS, Spec, held_out
from threedgen.data.toybox.world import portraits
from threedgen.evaluation.metrics.figures import (
    Share,
    bootstrap,
    bootstrap_ratio,
    in_order,
    jackknife,
    majority,
    share,
    side_of,
    sides_right,
    wilson,
)
from threedgen.evaluation.sampling import ring_poses
from threedgen.evaluation.tables import percent
from threedgen.evaluation.toybox import object_score, prior_score
from threedgen.evaluation.toybox.held_out import held_out_cases, held_out_rooms
from threedgen.evaluation.toybox.judging import equal_error, judge, tally
from threedgen.evaluation.toybox.labels import Labels
from threedgen.evaluation.toybox.options import Evaluate3DConfig, EvaluatePriorConfig, ProbeNetworkConfig
from threedgen.evaluation.toybox.probe import Probe, Seen
from threedgen.evaluation.toybox.report import mark
from threedgen.run.progress import Count
from threedgen.systems.generate.outputs import view_azimuths, view_indices, write_views
from threedgen.train.loop import Status

LABELS = Labels.of_toybox()
TURN = np.deg2rad([0.0, 90.0, 180.0, 270.0])

# --- shares ------------------------------------------------------------------------------------------------------


def test_wilson_values() -> None:
    """Against published tables of the score interval (Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29)."""
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (hits, total), interval in table.items():
        assert wilson(hits, total) == pytest.approx(interval, abs=6e-5)
    with pytest.raises(ValueError):
        wilson(1, 0)


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_holds_the_share_and_is_symmetric(case: tuple[int, int]) -> None:
    hits, total = case
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    assert wilson(total - hits, total) == pytest.approx((1 - high, 1 - low))


def test_what_was_not_asked_does_not_count() -> None:
    assert share([True, None, False, True]) == Share(2, 3)
    assert share([None]).value is None and percent(share([None])) == "-"
    assert percent(Share(195, 200)) == "97.5 % (195/200)"


def test_intervals_of_ratios_and_of_figures_that_are_no_means() -> None:
    rng = np.random.default_rng(1)
    below = rng.normal(20, 2, 200)
    above = 0.5 * below + rng.normal(0, 0.1, 200)
    low, high = bootstrap_ratio(above.tolist(), below.tolist()) or (0, 0)
    assert 0.49 < low < 0.5 < high < 0.51
    wide = bootstrap_ratio(above.tolist()[::-1], below.tolist()[:-1]) or (0, 0)  # of other scenes
    assert wide[0] < low and wide[1] > high and bootstrap_ratio([1.0], [2.0]) is None
    assert bootstrap_ratio([1.0, None, 3.0], [2.0, 2.0, 6.0]) == pytest.approx((0.5, 0.5))
    found = jackknife(lambda kept: float(below[kept].mean()), 200, 200) or (0, 0)
    assert np.ptp(found) / 2 == pytest.approx(stats.t.ppf(0.975, 199) * stats.sem(below)) and found[0] < 20 < found[1]
    assert jackknife(lambda kept: 1.0, 1) is None


def test_majority() -> None:
    sure, torn = [0.98, 0.01, 0.01], [0.3, 0.4, 0.3]
    assert majority(np.log([sure, torn, torn])) == 1  # the mean would say 0
    assert majority(np.log([sure, torn])) == 0  # of equally many votes the surer one


# --- sides -------------------------------------------------------------------------------------------------------


def test_sides_of_azimuths() -> None:
    assert side_of(np.deg2rad([0, 44, 46, 90, 180, 271, 314, 316, 359, -90])).tolist() == [0, 0, 1, 1, 2, 3, 3, 0, 0, 3]


@pytest.mark.parametrize(
    ("seen", "start", "right"),
    [
        ([0, 1, 2, 3], 0, True),
        ([1, 2, 3, 0], 90, True),
        ([0, 3, 2, 1], 0, False),  # mirrored: left and right swapped
        ([2, 3, 0, 1], 0, False),  # turned round
        ([0, 0, 0, 0], 0, False),  # a face on every side
        ([0, 1, 3, 2], 0, False),  # two swapped
        ([0, 1, 2, 3], 44, True),  # near the border either neighbour is right
        ([1, 2, 3, 0], 44, True),
        ([1, 2, 3, 0], 20, False),
    ],
)
def test_order_of_sides(seen: list[int], start: float, right: bool) -> None:
    """The probe is sure of ``seen``; where all look alike, order is luck and single sides tell."""
    azimuth = TURN + np.deg2rad(start)
    probability = np.full((4, 4), 0.02)
    probability[np.arange(4), seen] = 0.94
    if len(set(seen)) == 4:
        assert in_order(np.log(probability), azimuth) is right
    assert sides_right(seen, azimuth).all() == right


def test_slack_ends_where_it_should() -> None:
    assert sides_right([0, 0, 0, 0], np.deg2rad([59, 61, -59, 360 - 61])).tolist() == [True, False, True, False]


def test_order_survives_one_view_that_errs() -> None:
    probability = np.full((4, 4), 0.1)
    probability[np.arange(4), [0, 1, 2, 3]] = 0.7
    probability[2] = [0.4, 0.1, 0.35, 0.15]
    assert in_order(np.log(probability), TURN)
    assert not sides_right(probability.argmax(1), TURN).all()
    assert not in_order(np.log(np.roll(probability, 1, axis=1)), TURN)


def test_order_of_eight_views_is_asked_of_both_rings() -> None:
    azimuth = np.deg2rad(np.arange(8) * 45.0 + 10)
    probability = np.full((8, 4), 0.02)
    probability[np.arange(8), side_of(azimuth)] = 0.94
    assert in_order(np.log(probability), azimuth)
    probability[[1, 5]] = probability[[5, 1]]  # two opposite views of one ring swapped
    assert not in_order(np.log(probability), azimuth)
    with pytest.raises(ValueError, match="4, 8"):
        in_order(np.log(probability[:6]), azimuth[:6])


# --- verdicts ----------------------------------------------------------------------------------------------------


def seen(noun: str, colour: str, part: str, part_colour: str, sides: list[int], there: float = 0.9) -> Seen:
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
    return Seen(
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
    cases: list[tuple[Seen, set[str]]] = [
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


# --- evaluate-prior ----------------------------------------------------------------------------------------------


@pytest.fixture
def probe_file(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "weights" / "toybox-probe.safetensors"
    Probe(LABELS, ProbeNetworkConfig(image_size=32, channels=(8, 16, 16, 16))).save(path)
    return str(path)


def prior_config(out: Path, probe_file: str) -> EvaluatePriorConfig:
    return EvaluatePriorConfig(
        task="evaluate-prior", out=str(out), probe={"weights": probe_file}, samples=5, steps=2, batch=2, threads=1
    )  # type: ignore[call-arg]


def test_objects_denoised_together_are_those_denoised_alone() -> None:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    config = EvaluatePriorConfig(task="evaluate-prior")  # type: ignore[call-arg]
    cases = held_out_cases(2, 0)
    c2w = torch.stack([ring_poses(prior_score.cameras(config, case)) for case in cases])
    prompts = ["a red dog", "a blue house"]
    rngs = [torch.Generator().manual_seed(k) for k in (1, 2)]
    both = prior.sample(prompts, c2w, 2, 3.0, generator=rngs).unflatten(0, (2, 4))
    assert both.shape == (2, 4, 16, 16, 3)
    for k in range(2):
        alone = prior.sample(prompts[k], c2w[k], 2, 3.0, generator=torch.Generator().manual_seed(k + 1))
        assert torch.allclose(both[k], alone, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_evaluate_prior_reports_and_goes_on(tmp_path: Path, probe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    monkeypatch.setattr(registry, "build", lambda kind, config: prior)
    calls: list[int] = []
    real = prior.sample

    def counted(*args: Any) -> torch.Tensor:
        calls.append(len(args[0]))
        return real(*args)

    monkeypatch.setattr(prior, "sample", counted)
    config, out = prior_config(tmp_path / "run", probe_file), tmp_path / "run"
    assert prior_score.run(config, quiet=True) == 0
    assert calls == [2, 2, 1]
    first = (out / "report.json").read_bytes()
    figures = json.loads(first)
    assert figures["measured"]["noun"]["total"] == figures["probe_on_truth"]["noun"]["total"] == 5
    assert len(figures["objects"]) == 5
    text = (out / "report.md").read_text()
    assert "| noun |" in text and "95 %" in text
    assert (out / "sheet.png").is_file() and (out / "summary.json").is_file()

    damaged = out / "samples" / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])  # as a copy that was cut off
    assert prior_score.run(config, resume=out, quiet=True) == 0
    assert calls == [2, 2, 1, 2]
    assert (out / "report.json").read_bytes() == first

    with torch.no_grad():
        prior.unet.conv_in.bias += 1  # trained on: its old samples are not its own any more
    assert prior_score.run(config, resume=out, quiet=True) == 0
    assert calls == [2, 2, 1, 2, 2, 2, 1]


def test_a_missing_probe_is_said_before_the_prior_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "build", lambda *args: pytest.fail("too late"))
    with pytest.raises(ConfigError, match="train-toybox-probe"):
        prior_score.run(prior_config(tmp_path, str(tmp_path / "none.safetensors")))


# --- evaluate-3d -------------------------------------------------------------------------------------------------


def test_views_lie_evenly_on_the_turn() -> None:
    assert view_indices(8) == list(range(8)) and view_indices(3) == [0, 1, 2]
    for n in (9, 60, 100, 120):
        gaps = np.diff([*view_indices(n), n])
        assert len(gaps) == 8 and gaps.max() - gaps.min() <= 1


def test_evaluate_3d_makes_measures_and_leaves_finished_runs(
    tmp_path: Path, probe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that write ground truth in the place of their results, one of which breaks down."""
    config = Evaluate3DConfig(
        task="evaluate-3d",
        out=str(tmp_path / "run"),
        probe={"weights": probe_file},
        prompts=3,
        calibration=1,
        overrides=("result.turntable.height=64", "result.turntable.width=64", "trainer.max_steps=7"),
        threads=1,
    )  # type: ignore[call-arg]
    cases = {case.caption: case for case in held_out_cases(3, 0, spread=True)}
    broken = list(cases)[1]
    made: list[str] = []

    def fake(begun: Any, resume: Path | None, quiet: bool) -> Status:
        assert begun.trainer.max_steps == 7 and quiet and not begun.export.enabled
        folder = Path(begun.out)
        if (folder / "views.png").is_file():
            assert resume == folder
            return Status.FINISHED
        made.append(begun.prompt)
        if begun.prompt == broken:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
            raise ConfigError("the loss was no longer a number")
        azimuth = view_azimuths(begun.result.turntable)
        views = portraits(cases[begun.prompt].truth(9), azimuth, 0.26, 64, fov=0.7).rgb
        write_views(views, folder)
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.5, "peak_memory_mib": 100.0}))
        return Status.FINISHED

    monkeypatch.setattr(object_score, "run_status", fake)
    monkeypatch.setattr(object_score, "surface", lambda *place: (9.0, True))
    assert object_score.run(config, quiet=True) == 0
    assert made == list(cases)
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["failed"] == 1 and figures["costs"]["seconds_median"] == 12.5
    assert figures["measured"]["noun"]["total"] == 3 and figures["probe_on_truth"]["noun"]["total"] == 3
    near = figures["fidelity"]
    assert near["translucent"] == 2 and near["without_surface"] == 1 and near["roughness"] == 9
    assert 0 < near["floor_roughness"] < 9 and near["floor_fid"] < near["fid"]  # one of three is a grey picture
    assert figures["objects"][1]["answers"]["noun"] is False and figures["objects"][1]["seconds"] is None
    assert "One front only" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "sheet.png").is_file()

    assert object_score.run(config, resume=tmp_path / "run", quiet=True) == 0
    assert made == [*cases, broken]  # only the one that failed is tried again
    next((tmp_path / "run" / "objects").glob("*/views.npz")).write_bytes(b"PK")  # as a full disk might leave it
    with pytest.raises(ConfigError, match=r"lacks views\.npz of a finished run"):
        object_score.run(config, resume=tmp_path / "run", quiet=True)


def test_evaluate_3d_stops_at_ctrl_c_and_at_mistakes_that_hold_for_all_runs(
    tmp_path: Path, probe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wanted(**changes: Any) -> Evaluate3DConfig:
        values = {"task": "evaluate-3d", "out": str(tmp_path / "run"), "probe": {"weights": probe_file}, "prompts": 2}
        return Evaluate3DConfig(**(values | changes))  # type: ignore[arg-type]

    monkeypatch.setattr(object_score, "run_status", lambda *args, **kwargs: Status.INTERRUPTED)
    assert object_score.run(wanted(), quiet=True) == 130

    def no_prior(*args: Any, **kwargs: Any) -> Status:
        raise ConfigError("weights: this installation lacks the embedded prior")

    monkeypatch.setattr(object_score, "run_status", no_prior)
    with pytest.raises(ConfigError, match="lacks the embedded prior"):
        object_score.run(wanted(), quiet=True)
    with pytest.raises(ConfigError, match="task generate"):
        object_score.run(wanted(config="sample-toybox"), quiet=True)
    with pytest.raises(ConfigError, match="no shipped config"):
        object_score.run(wanted(config="mvdream-toibox"), quiet=True)


# --- progress ----------------------------------------------------------------------------------------------------


def test_counting_without_a_terminal_says_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    with Count("sampling", 4) as count:
        for _ in range(4):
            count.add(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("sampling: 1/4") and lines[-1] == "sampling: 4/4" and len(lines) == 2
    with Count("sampling", 1, quiet=True) as count:
        count.add(1)
    assert capsys.readouterr().err == ""


def test_the_pace_is_not_taken_from_what_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    with Count("sampling", 1_000_003, done=1_000_000) as count:
        time.sleep(0.2)
        count.add(1)
        assert (count.speed.seconds_a_step() or 0.0) >= 0.2
        count.add(2)
    assert capsys.readouterr().err.splitlines() == ["sampling: 1000000/1000003", "sampling: 1000003/1000003"]


def test_bootstrap_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(20, 2, 100).tolist()
    low, high = bootstrap(values, np.random.default_rng(2), 4000) or (0.0, 0.0)
    error = np.std(values) / 10
    assert (np.mean(values) - low) / error == pytest.approx(1.96, abs=0.25)
    assert (high - np.mean(values)) / error == pytest.approx(1.96, abs=0.25)
    assert bootstrap([1.0], np.random.default_rng(0)) is None
    assert bootstrap([2.0, None, 2.0], np.random.default_rng(0)) == (2.0, 2.0)
