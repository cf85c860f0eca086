"""Another choice on the command line keeps what it shares with that of the config."""

from __future__ import annotations

import pytest

from threedgen.config import ConfigError, load


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("words", [["field.name=sdf"], ["field=sdf"]])
def test_a_field_keeps_encoding_and_width(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    before = load("mvdream-toybox", ["prompt=a dog"]).field
    made = load("mvdream-toybox", ["prompt=a dog", *words]).field
    assert made.name == "sdf" and made.encoding == before.encoding and made.width == before.width == 32
    stay = "field.name=sdf: encoding, width stay as the config has them, other options of this section are the defaults"
    assert said(caplog) == [f"{stay} of sdf"]


def test_a_distillation_keeps_its_guidance_where_it_means_the_same(caplog: pytest.LogCaptureFixture) -> None:
    made = load("mvdream-toybox", ["distillation.name=sds"]).distillation
    assert made.guidance_scale == 3 and made.min_step_percent == {"0%": 0.98, "80%": 0.02}
    assert load("mvdream-toybox", ["distillation.name=vsd"]).distillation.guidance_scale == 7.5, "it wants less"
    assert [line.partition(":")[0] for line in said(caplog)] == ["distillation.name=sds", "distillation.name=vsd"]
    assert "options of this section are the defaults of vsd" in said(caplog)[1]


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
    assert len(said(caplog)) == 1, "in the toybox's config nothing was said of the prior, so nothing changes"


@pytest.mark.parametrize("words", [[], ["field.name=ngp"], ["field={name: sdf}"], ["distillation={name: sds}"]])
def test_the_same_name_and_whole_sections_are_as_ever(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    made = load("mvdream-toybox", words)
    assert said(caplog) == []
    if "sdf" in str(words):
        assert made.field.width == 64
    with pytest.raises(ConfigError, match="did you mean 'sdf'"):
        load("mvdream-toybox", ["field.name=sdff"])
