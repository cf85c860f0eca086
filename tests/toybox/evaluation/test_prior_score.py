import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.errors import refused
from tests.support.tiny_prior import tiny_prior
from threedgen.config import load, registry
from threedgen.evaluation.view_use import Objects, x0_errors
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.toybox.data.pictures import ViewRings
from threedgen.toybox.evaluation import prior_score
from threedgen.toybox.evaluation.options import EvaluatePriorConfig
from threedgen.toybox.evaluation.prior_score import measure_open_prompts, open_cases, open_table, true_views
from threedgen.toybox.evaluation.probe import Probe
from threedgen.toybox.world.grammar import ACCESSORIES, NOUNS
from threedgen.toybox.world.open_toybox import OpenToybox


def prior_config(out: Path, probe_file: str, **values: Any) -> EvaluatePriorConfig:
    few = {"samples": 5, "steps": 2, "batch": 2, "threads": 1, "view_use": 0, "open_nouns": 0} | values
    return EvaluatePriorConfig(task="evaluate-prior", out=str(out), probe={"weights": probe_file}, **few)  # type: ignore[call-arg]


def test_report_and_resume(tmp_path: Path, probe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    devices: list[str] = []
    monkeypatch.setattr("threedgen.train.task.device", lambda accelerator: "cuda:0")
    monkeypatch.setattr(registry, "build", lambda kind, config, device: devices.append(device) or prior)
    calls: list[int] = []
    real = prior.sample

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(len(args[0]))
        return real(*args, **options)

    monkeypatch.setattr(prior, "sample", counted)
    config, out = prior_config(tmp_path / "run", probe_file), tmp_path / "run"
    assert prior_score.run(config, quiet=True) == 0
    assert calls == [2, 2, 1] and devices == ["cuda:0"]
    first = (out / "report.json").read_bytes()
    figures = json.loads(first)
    assert figures["measured"]["noun"]["total"] == figures["probe_on_truth"]["noun"]["total"] == 5
    assert len(figures["objects"]) == 5
    text = (out / "report.md").read_text()
    assert "| noun |" in text and "95 %" in text
    assert (out / "sheet.png").is_file() and (out / "summary.json").is_file()
    damaged = out / "samples" / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert prior_score.run(config, resume=out, quiet=True) == 0
    assert calls == [2, 2, 1, 2]
    assert (out / "report.json").read_bytes() == first
    with torch.no_grad():
        prior.unet.conv_in.bias += 1  # other weights: the kept samples do not fit
    assert prior_score.run(config, resume=out, quiet=True) == 0
    assert calls == [2, 2, 1, 2, 2, 2, 1]


def test_view_use_and_open_prompts_are_reported(tmp_path: Path, probe_file: str, monkeypatch) -> None:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    monkeypatch.setattr(registry, "build", lambda kind, config, place: prior)
    monkeypatch.setattr(prior_score, "VARIETY_SEEDS", 2)
    out = tmp_path / "run"
    config = prior_config(out, probe_file, samples=1, view_use=3, open_nouns=2)
    assert prior_score.run(config, quiet=True) == 0
    figures = json.loads((out / "report.json").read_text())
    assert figures["view_use"]["objects"] == 3 and figures["view_use"]["clean"]["mean"] > 0
    found = figures["open"]
    assert len(found["agreement"]["nouns"]) == found["accessories"]["measured"]["with"]["total"] == 2
    assert found["agreement"]["truth"]["mean"] < found["agreement"]["chance"]
    text = (out / "report.md").read_text()
    assert "## Use of the other views" in text and "## Open prompts" in text
    assert (out / "open.png").is_file()


def test_missing_probe_and_too_few_objects_are_found_before_any_work() -> None:
    for name, key in (
        ("evaluate-toybox-prior", "probe.weights"), ("janus-meter", "meter.classifier.weights"),
        ("consistency", "features.weights"),
    ):  # fmt: skip
        with refused(key, "'none'", "train-toybox-probe"):
            load(name, [f"{key}=none"]).check()
    with refused(None, "view_use 1"):
        load("evaluate-toybox-prior", ["view_use=1"])


def test_a_code_fitted_to_the_companions_predicts_the_unseen_view() -> None:
    prior = MVDream.load("toybox-prior", dtype="fp32")
    renders = ViewRings(OpenToybox(3, "held-out"), 4).render_examples(range(2), prior.image_size)
    objects, t = Objects.encoded(prior, renders), torch.tensor([[prior.schedule.T - 1, 100, 100, 100]] * 2)
    noise = torch.randn(objects.z.shape, generator=torch.Generator().manual_seed(0))
    plain, fitted = (x0_errors(prior, objects, objects.z, t, noise, fit_code=fit).mean() for fit in (False, True))
    assert fitted < 0.8 * plain


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
    good, bad = (measure_open_prompts(probe, matte, cases, views, truth) for views in (other, mixed))
    assert good["agreement"]["measured"]["mean"] < 12 < bad["agreement"]["measured"]["mean"]
    assert good["agreement"]["chance"] > 25
    accessories = good["accessories"]["measured"]
    assert accessories["with"]["hits"] >= 4 > accessories["without"]["hits"]
    assert good["variety"]["measured"]["colour_entropy"]["mean"] > 1
    assert "Open prompts" in open_table(good, 6, 4)
