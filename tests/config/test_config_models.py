"""Config models: schedules between their points, components checked by the model that they name, defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.toy_task import YAML, ToyConfig, toy  # noqa: F401
from threedgen import config
from threedgen.config import ConfigError, Scheduled, at, fields, registry
from threedgen.config.errors import nearest, short


class _OneSchedule(config.Config):
    value: Scheduled = 1.0


@given(
    st.dictionaries(st.integers(0, 10**6), st.floats(-1e6, 1e6), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_a_schedule_lies_between_its_neighbours(points: dict[int, float], step: int) -> None:
    schedule = _OneSchedule(value=points).value
    before = [key for key in sorted(points) if key <= step]
    after = [key for key in sorted(points) if key >= step]
    ends = [points[key] for key in (before[-1:] + after[:1])]
    assert min(ends) <= at(schedule, step) <= max(ends)
    for key, value in points.items():
        assert at(schedule, key) == value


def test_schedules_by_hand() -> None:
    assert at(3, 17) == 3.0
    line = _OneSchedule(value={10: 0, 20: 1}).value
    assert [at(line, step) for step in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]
    share = _OneSchedule(value={"50%": 4, "0 %": 0}).value
    assert share == {"0%": 0.0, "50%": 4.0}
    assert [at(share, step, max_steps=200) for step in (0, 50, 100, 200)] == [0, 2, 4, 4]
    with pytest.raises(ValueError, match="max_steps"):
        at(share, 3)
    for wrong in (
        "a",
        True,
        None,
        {-1: 0},
        {"101%": 0},
        {1.5: 0},
        {0: "x"},
        {0: float("nan")},
        10**400,
        {1: 0, "1": 1},
    ):
        with pytest.raises(ValidationError, match="should be a number, or"):
            _OneSchedule(value=wrong)


def test_models_are_frozen_and_strict(toy: Path) -> None:  # noqa: F811
    loaded = config.load(toy)
    with pytest.raises(ValidationError):
        loaded.seed = 3
    with pytest.raises(ValidationError):
        _OneSchedule(values=3)


def test_components_are_checked_by_the_model_they_name(toy: Path) -> None:  # noqa: F811
    small = config.load(toy, ["prior.name=small", "prior.width=3"])
    assert type(small.prior).__name__ == "SmallPrior" and small.prior.width == 3
    assert "width: 3" in config.dump(small) and "name: small" in config.dump(small)
    assert '"width":3' in small.model_dump_json()
    toy.write_text("task: toy\nprompt: a\nprior: {guidance_scale: 2}\n")
    assert config.load(toy).prior.name == "big"  # the default name
    assert fields.paths(ToyConfig, {"prior": {"name": "small"}}).count("prior.width") == 1


def test_a_section_given_in_part_keeps_the_default_of_its_field(toy: Path) -> None:  # noqa: F811
    loaded = config.load(toy, ["checkpoint.seconds=5"])
    assert (loaded.checkpoint.seconds, loaded.checkpoint.keep) == (5, 3)
    assert (config.load(toy).checkpoint.seconds, config.load(toy).checkpoint.keep) == (60, 3)
    square = config.load(toy, ["shape.name=square"])
    assert square.shape.side == 1.0


def test_registry_names_what_is_near() -> None:
    with pytest.raises(ConfigError, match="did you mean 'generate'"):
        registry.entry("task", "genrate")
    assert "generate" in registry.names("task")


def test_short_values_and_names() -> None:
    assert short("\x1b[31m") == "'\\x1b[31m'"
    assert len(short("x" * 500)) == 80
    assert nearest("MVDREAM", ["mvdream"]) == "mvdream" and nearest("zzz", ["mvdream"]) is None
