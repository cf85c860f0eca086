from pathlib import Path

import pytest

from tests.support.errors import refused
from threedgen.config import dump, load, registry

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


@pytest.mark.parametrize("text", ["field: {name: sdf}\n", "field: sdf\n"])
def test_choice_follows_the_name_in_files_and_overrides(family: Path, text: str) -> None:
    made = load(child(family, text))
    assert (made.field.width, made.field.sphere, made.loss.opaque, made.loss.eikonal) == (24, 0.3, 0, 5)
    assert made.size == {"0%": 16, "50%": 32}
    for words in (["field.name=sdf"], ["field=sdf"], ["field={name: sdf}"]):
        assert load(family, words) == made
    back = load(child(family, text), ["field.name=ngp"])
    assert back == load(family) and (back.field.width, back.loss.opaque, back.loss.eikonal) == (16, 7, 0)


def test_values_of_files_and_overrides_win(family: Path) -> None:
    made = load(child(family, "field: {name: sdf, width: 8}\nloss: {eikonal: 1}\n"), ["size=20"])
    assert (made.field.width, made.field.sphere, made.loss.opaque, made.loss.eikonal, made.size) == (8, 0.3, 0, 1, 20)
    assert load(family, values={"field.name": "sdf", "field.sphere": 0.4}).field.width == 24
    words = ["field.width=12", "field.name=sdf", "field.sphere=0.2", "field.encoding.n_levels=7"]
    made = load(child(family, "loss: {eikonal: 1}\n"), words)
    assert (made.field.width, made.field.sphere, made.field.encoding.n_levels, made.loss.eikonal) == (12, 0.2, 7, 1)
    made = load(child(family, "choices: {field: {sdf: {field: {width: 9}}}}\n"), ["field.name=sdf"])  # a later file
    assert (made.field.width, made.field.sphere) == (9, 0.3)


def test_options_of_another_name_are_dropped(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load(child(family, "field: {radius: 2, width: 40}\n"), ["field.name=sdf"])
    assert (made.field.radius, made.field.width) == (1, 24)
    family.write_text("task: generate\nfield: {density_bias: 2, encoding: {n_levels: 3}}\n")
    assert load(family).field.density_bias == 2
    assert load(family, ["field.name=sdf"]).field.encoding.n_levels == 16, "also without a name in the file"
    plugin = registry.Entry("tests.support.frequency:Frequency", "tests.support.frequency:FrequencyConfig")
    monkeypatch.setitem(registry.TABLE["encoding"], "frequency", plugin)
    assert load(family, ["field.encoding.name=frequency"]).field.density_bias == 2
    with refused(None, "field.density_scale: "):
        load(family, ["field.name=sdf", "field.density_scale=3"])


def test_resolved_config_has_no_choices(family: Path, tmp_path: Path) -> None:
    text = dump(load(family, ["field.name=sdf"]))
    assert "choices" not in text
    (tmp_path / "config.yaml").write_text(text)
    assert dump(load(tmp_path / "config.yaml")) == text


@pytest.mark.parametrize(
    ("choices", "values"),
    [
        ("{field: {ngp: {field: {widht: 3}}}}", ("choices.field.ngp: field.widht: ", "'field.width'")),
        ("{field: {ngp: {loss: {eikonal: 1}}}}", ("loss.eikonal",)),
        ("{field: {sdff: {}}}", ("choices.field.sdff: ", "'sdf'")),
        ("{field: sdf}", ("choices.field: ", "'sdf'")),
    ],
)
def test_mistakes_name_the_choice(family: Path, choices: str, values: tuple[str, ...]) -> None:
    with refused(None, "child.yaml", *values):
        load(child(family, f"choices: {choices}\n"))
