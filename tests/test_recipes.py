"""The table of docs/recipes.md: its column "ours" against the configs, and every config for released weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from threedgen import config
from threedgen.config import shipped

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| `([\w-]+)` \| `([\w.]+)` \| (.*)\| (.*)\| (.*)\| (.*)\|$", (ROOT / "docs/recipes.md").read_text(), re.M
)
"""(config, parameter, paper, released code, ours, reason)"""
LOSSES = re.findall(
    r"^\| (ism|csd|sdi|jsd) \| `(\w+)` \| (.*)\| (.*)\| (.*)\| (.*)\|$", (ROOT / "docs/recipes.md").read_text(), re.M
)
"""(loss, option, paper, released code, default, reason)"""
NAMES = sorted({row[0] for row in ROWS})


def value(made: Any, path: str) -> Any:
    """Return the value of a parameter such as "stages.coarse.size" as plain data; keys of schedules are strings."""
    keys = path.split(".")
    if keys[0] == "stages":
        made, keys = made.stage(keys[1]), keys[2:]
    for key in keys:
        made = getattr(made, key)
    return plain(made)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_the_config(name: str) -> None:
    made = config.load(name, [] if name.startswith(("train-", "threedim-")) else ["prompt=a"])
    rows = {parameter: ours for config, parameter, _, _, ours, _ in ROWS if config == name}
    assert {key: value(made, key) for key in rows} == {key: plain(yaml.safe_load(ours)) for key, ours in rows.items()}


@pytest.mark.parametrize("name", ["ism", "csd", "sdi", "jsd"])
def test_recipe_has_the_defaults_of_a_loss(name: str) -> None:
    rows = {option: plain(yaml.safe_load(default)) for loss, option, _, _, default, _ in LOSSES if loss == name}
    made = config.registry.config_model("distillation", name)()
    assert rows == {key: plain(getattr(made, key)) for key in type(made).model_fields if key in rows}
    assert {*type(made).model_fields} - {*rows} == {"name", "timestep_per"}


def test_every_config_for_a_gpu_is_in_the_table() -> None:
    configs = [name for name in shipped() if "toybox" not in name and "own-prior" not in name]
    needs = {name: yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())["needs"] for name in configs}
    assert [name for name in configs if "GPU" in needs[name]] == NAMES
    assert len(ROWS) == len({row[:2] for row in ROWS})


def test_changed_values_have_a_reason() -> None:
    """Where paper, release and config are plain numbers that differ."""
    number = re.compile(r"\(?(-?[\d.]+(?:e-?\d+)?)\)?")
    for name, parameter, *values, reason in [*ROWS, *LOSSES]:
        numbers = {float(found[1]) for text in values if (found := number.fullmatch(text.strip().replace(",", "")))}
        assert len(numbers) < 2 or reason.strip(), (name, parameter, values)
