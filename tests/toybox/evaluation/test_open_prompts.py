"""Figures of unspecific prompts, on true renders instead of samples."""

import numpy as np
import pytest

from threedgen.guidance.matte import Matte
from threedgen.toybox.evaluation.prior_score import measure, open_cases, open_table, true_views
from threedgen.toybox.evaluation.probe import Probe
from threedgen.toybox.world.grammar import ACCESSORIES, NOUNS

AZIMUTH = np.arange(4) * np.pi / 2


def test_cases_have_no_colour_and_paired_accessories() -> None:
    cases = open_cases(24, 12)
    assert len(cases["agreement"]) == len({case.spec.noun for case in cases["agreement"]}) == 24
    assert len(cases["variety"]) == 6 * 12
    for worn, plain in zip(cases["worn"], cases["plain"], strict=True):
        assert worn.spec.part in NOUNS[worn.spec.noun].wears and worn.spec.part in worn.caption
        assert plain.spec.noun == worn.spec.noun and plain.index == worn.index and not plain.spec.part
    assert {case.spec.part for case in cases["worn"]} == set(ACCESSORIES)
    assert not any(case.spec.colour or case.spec.part_colour for group in cases.values() for case in group)


@pytest.mark.slow
def test_figures_of_true_and_mixed_renders() -> None:
    cases, probe, matte = open_cases(6, 4), Probe.load(), Matte.load("toybox-matte")
    every = [case for group in cases.values() for case in group]
    truth, other = ([true_views(case, AZIMUTH, 64, seed) for case in every] for seed in (1, 2))
    mixed = [np.stack([other[(k + v) % len(other)][v] for v in range(4)]) for k in range(len(other))]
    good, bad = (measure(probe, matte, cases, views, truth) for views in (other, mixed))
    assert good["agreement"]["measured"]["mean"] < 12 < bad["agreement"]["measured"]["mean"]
    assert good["agreement"]["chance"] > 25
    accessories = good["accessories"]["measured"]
    assert accessories["with"]["hits"] >= 4 > accessories["without"]["hits"]
    assert good["variety"]["measured"]["colour_entropy"]["mean"] > 1
    assert "Open prompts" in open_table(good, 6, 4)
