"""`choices:` says what a family of configs wants with each name of a section; whoever names it, has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from threedgen.config import ConfigError, dump, load

FAMILY = """\
task: generate
field: {name: ngp}
choices:
  field:
    ngp: {field: {width: 16}, loss: {opaque: 7, eikonal: 0}}
    sdf: {field: {width: 24, sphere: 0.3}, loss: {opaque: 0, eikonal: 5}, size: {0%: 16, 50%: 32}}
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    path = tmp_path / "family.yaml"
    path.write_text(FAMILY)
    return path


def child(family: Path, text: str) -> Path:
    path = family.with_name("child.yaml")
    path.write_text(f"base: family.yaml\n{text}")
    return path


def test_a_file_has_what_goes_with_its_own_choice(family: Path) -> None:
    made = load(family)
    assert made.field.width == 16 and made.loss.opaque == 7 and made.loss.eikonal == 0


@pytest.mark.parametrize("text", ["field: {name: sdf}\n", "field: sdf\n"])
def test_a_file_that_builds_on_it_has_it_too(family: Path, text: str) -> None:
    made = load(child(family, text))
    assert (made.field.width, made.field.sphere, made.loss.opaque, made.loss.eikonal) == (24, 0.3, 0, 5)
    assert made.size == {"0%": 16, "50%": 32}
    back = load(child(family, text), ["field.name=ngp"])
    assert back.loss.opaque == 7 and back.size == load(family).size, "and back"


def test_what_a_file_or_the_command_line_says_lies_over_it(family: Path) -> None:
    made = load(child(family, "field: {name: sdf, width: 8}\nloss: {eikonal: 1}\n"), ["size=20"])
    assert (made.field.width, made.field.sphere, made.loss.opaque, made.loss.eikonal, made.size) == (8, 0.3, 0, 1, 20)
    assert load(family, values={"field.name": "sdf", "field.sphere": 0.4}).field.width == 24


def test_a_later_file_says_more_of_a_choice(family: Path) -> None:
    made = load(child(family, "choices: {field: {sdf: {field: {width: 9}}}}\n"), ["field.name=sdf"])
    assert (made.field.width, made.field.sphere) == (9, 0.3)


def test_what_both_choices_begin_with_stays_and_the_rest_comes_with_the_name(
    family: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alike = child(family, "field: {radius: 2, width: 40}\nmarch: {radius: 2}\n")
    made = load(alike, ["field.name=sdf"])
    assert made.field.radius == 2, "both begin with 1"
    assert made.field.width == 24, "the one wants 16, the other 24"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "field.name=sdf: unchanged: radius; field.width=24, field.sphere=0.3, loss.opaque=0, "
        "loss.eikonal=5, size={0%: 16, 50%: 32} come with it; other options of this section are the defaults of sdf"
    )


def test_a_run_keeps_its_values_and_not_the_choices(family: Path, tmp_path: Path) -> None:
    text = dump(load(family, ["field.name=sdf"]))
    assert "choices" not in text
    (tmp_path / "config.yaml").write_text(text)
    assert dump(load(tmp_path / "config.yaml")) == text


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (
            "{field: {sdf: {field: {widht: 3}}}}",
            "choices.field.sdf: field.widht: unknown key; did you mean 'field.width'",
        ),
        ("{field: {sdf: {field: {width: 0}}}}", "choices.field.sdf: field.width: should be greater"),
        ("{field: {sdff: {}}}", "choices.field.sdff: field.name: no representation has this name; did you mean 'sdf'"),
        ("{feild: {sdf: {}}}", "choices.feild.sdf: feild: unknown key; did you mean 'field'"),
        ("{field: {ngp: {loss: {eikonal: 1}}}}", "choices.field.ngp: loss.eikonal is for fields of distances"),
        ("{field: sdf}", "choices.field: should be a section"),
        ("3", "choices: should be a section"),
    ],
)
def test_mistakes_are_found_when_it_is_read(family: Path, choices: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(child(family, f"choices: {choices}\n"))
    assert said in str(raised.value) and "child.yaml" in str(raised.value)
