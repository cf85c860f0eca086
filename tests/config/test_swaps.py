"""Another choice on the command line keeps what it shares with that of the config."""

from __future__ import annotations

from pathlib import Path

import pytest

from threedgen.config import ConfigError, load
from threedgen.systems.batch.task import plan


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("words", [["field.name=sdf"], ["field=sdf"]])
def test_a_field_keeps_encoding_and_width(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    before = load("mvdream-toybox", ["prompt=a dog"]).field
    made = load("mvdream-toybox", ["prompt=a dog", *words]).field
    assert made.name == "sdf" and made.encoding == before.encoding and made.width == before.width == 32
    comes = "field.log_sharpness=4.5, loss.opaque=0.0, loss.eikonal=10.0 come with it"
    stay = f"field.name=sdf: unchanged: encoding, width; {comes}; other options of this section"
    assert said(caplog) == [f"{stay} are the defaults of sdf"]


def test_a_distillation_keeps_its_guidance_where_both_want_the_same(caplog: pytest.LogCaptureFixture) -> None:
    made = load("mvdream-sd21", ["distillation.name=sds"]).distillation
    assert made.guidance_scale == 50 and made.min_step_percent == {0: 0.98, 8000: 0.02}
    assert load("mvdream-sd21", ["distillation.name=vsd"]).distillation.guidance_scale == 7.5, "it wants less"
    assert [line.partition(":")[0] for line in said(caplog)] == ["distillation.name=sds", "distillation.name=vsd"]
    assert load("mvdream-toybox", ["distillation.name=sds"]).distillation == load("sds-toybox").distillation


def test_what_is_given_with_it_wins() -> None:
    words = ["field.width=16", "field.name=sdf", "field.sphere=0.3", "field.encoding.n_levels=7"]
    made = load("mvdream-toybox", words).field
    assert (made.width, made.sphere, made.encoding.n_levels, made.encoding.log2_hashmap_size) == (16, 0.3, 7, 15)
    made = load("mvdream-toybox", ["field.name=sdf", "field.encoding.name=frequency", "field.normal_eps=0.01"]).field
    assert made.encoding.name == "frequency" and made.width == 32
    with pytest.raises(ConfigError, match=r"field\.density_scale: unknown key"):
        load("mvdream-toybox", ["field.name=sdf", "field.density_scale=3"])


def test_weights_of_one_prior_are_not_those_of_another(caplog: pytest.LogCaptureFixture) -> None:
    assert load("mvdream-sd21", ["prior.name=deepfloyd"]).prior.weights == "DeepFloyd/IF-I-XL-v1.0"
    assert load("mvdream-toybox", ["prior.name=stable-diffusion"]).prior.weights == "toybox-base"
    assert "camera.n_view=1" in said(caplog)[1] and "trainer.max_steps=1200" in said(caplog)[1]


def test_what_goes_with_the_former_name_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Views that a prior of single pictures draws again do not agree."""
    made = load("mvdream-toybox", ["prior.name=stable-diffusion"])
    assert made.refine.strengths == () and made.warm_start.share == 0
    gone = "warm_start.share, refine.strengths, refine.share, refine.steps, refine.sharpen are the default again"
    assert gone in said(caplog)[0]
    for method in ("sds", "dreamfusion", "text2mesh", "prolificdreamer", "magic3d"):
        whole = load(f"{method}-toybox", quiet=True)
        assert not any(each.refine.strengths for each in (whole, *map(whole.stage, whole.stages))), method


def test_of_many_values_the_sections_are_said(caplog: pytest.LogCaptureFixture) -> None:
    load("mvdream-toybox", ["field.name=dmtet"])
    (line,) = said(caplog)
    assert "13 values of field, optimizer, loss come with it (--print-config shows them)" in line and len(line) < 200


def test_nothing_is_said_of_configs_that_others_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a blue dog\n")
    load("mvdream-toybox", ["field.name=sdf"], quiet=True)
    assert len(plan(load("combinations-toybox", ["prompts=prompts.txt"]))) == 27 and said(caplog) == []


@pytest.mark.parametrize("words", [[], ["field.name=ngp"], ["field={name: ngp}"]])
def test_the_same_name_is_as_ever(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    made = load("mvdream-toybox", words)
    assert made == load("mvdream-toybox") and said(caplog) == []
    with pytest.raises(ConfigError, match="did you mean 'sdf'"):
        load("mvdream-toybox", ["field.name=sdff"])


def test_a_whole_section_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert load("mvdream-sd21", ["field={name: sdf}"]).field.encoding.per_level_scale == 1.447269237440378
    made = load("mvdream-toybox", ["field={name: sdf, width: 8, sphere: 0.4}"])
    assert (made.field.width, made.field.sphere, made.loss.eikonal) == (8, 0.4, 10)
    assert made.field.encoding.n_levels == 10
    assert len(said(caplog)) == 2 and "7 values of field, loss come with it" in said(caplog)[1]
