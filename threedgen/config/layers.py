"""A config: YAML files, `base:` on another, dotted overrides, one check, every mistake in one line.

    config = load("mvdream-toybox", ["prompt=a blue dog", "trainer.max_steps=100"])

Models of the sections (pydantic, typed and bounded) live in `options.py` files beside the classes they
configure. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from threedgen import folder
from threedgen.config import fields, registry, renamed, yaml_text
from threedgen.config.choices import Choices, put_under, take_out
from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.config.fields import Layer, merge, put
from threedgen.config.messages import explain
from threedgen.config.swaps import swapped, tell
from threedgen.config.unknown import unknown

COMMAND_LINE, PYTHON = "command line", "arguments"


def shipped() -> list[str]:
    """Names of the configs that come with the project, without `.yaml`."""
    root = folder("configs")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """The file of a config: a path first (relative to `beside`, default the working directory), then a
    shipped name; `.yaml` may be left out. Raises ConfigError with the nearest name."""
    text = str(name_or_path)
    if not text.strip() or "\0" in text:
        raise ConfigError("should be a file or a name", "config", text)
    for root in (beside or Path(), folder("configs")):
        for candidate in (root / text, root / f"{text}.yaml"):
            try:
                if candidate.is_file():
                    return candidate
            except OSError:  # a name too long for the file system
                continue
    guess = nearest(Path(text).stem, shipped())
    raise ConfigError(f"no file and no shipped config has this name{did_you_mean(guess)}", "config", text)


def read_layers(path: Path, chain: tuple[Path, ...] = ()) -> list[Layer]:
    """The file's data after the data of all its bases. Raises ConfigError, with the chain for a circle."""
    chain = (*chain, path.resolve())
    if chain[-1] in chain[:-1]:
        circle = " -> ".join(link.name for link in chain[chain.index(chain[-1]) :])
        raise ConfigError(f"{path}: base: the files build on each other in a circle: {circle}")
    tree = yaml_text.read(path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines (got {short(tree)})")
    base = tree.pop("base", None)
    if base is None:
        return [Layer(str(path), tree)]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: should be one file or name (got {short(base)})")
    try:
        below = find(base, beside=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}") from None
    return [*read_layers(below, chain), Layer(str(path), tree)]


def split_override(text: str) -> tuple[tuple[str, ...], str]:
    """`a.b=text` into (("a", "b"), "text"), at the first `=`. Raises ConfigError."""
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"{COMMAND_LINE}: an override is written key=value, such as seed=3 (got {short(text)})")
    return parts, value


def _override_layer(
    model: type[BaseModel], tree: dict, given: list[tuple[tuple[str, ...], str]], choices: Choices
) -> Layer:
    """Overrides as data: texts raw, everything else read as YAML. Raises ConfigError with every mistake."""
    names: dict[str, Any] = {}
    for typed, text in given:  # first, for they decide which options there are
        if typed[-1] == "name":
            put(names, typed, text)
        with suppress(KeyError):
            key, field = renamed.locate(model, tree, typed, COMMAND_LINE)
            if section := _named_section(field, text):
                put(names, key, section)
    result = swapped(model, tree, names, choices)
    present = merge(merge(tree, names), result)
    problems = []
    for typed, text in given:
        where = f"{COMMAND_LINE}: {'.'.join(typed)}"
        try:
            key, field = renamed.locate(model, present, typed, COMMAND_LINE)
            put(result, key, _value(field, text, where))
        except renamed.Gone:
            problems.append(f"{where}: has no effect any more; leave it out")
        except KeyError:
            problems.append(f"{where}: {unknown(typed, model, present)} (got {short(text)})")
        except ConfigError as error:
            problems.append(f"{error} (got {short(text)})")
    if problems:
        raise ConfigError("\n".join(problems))
    return Layer(COMMAND_LINE, result)


def _named_section(field: FieldInfo | None, text: str) -> dict[str, str] | None:
    """`sampler=mvdream` as {name: mvdream}; None for what is no component, or is given as YAML."""
    mark = fields.component(field) if field else None
    return mark.section(text) if mark and text != "null" and text[:1] not in ("", "{", "[") else None


def _value(field: FieldInfo | None, text: str, where: str) -> Any:
    if section := _named_section(field, text):
        return section
    if field is not None and fields.is_text(field):
        return None if text == "null" and type(None) in fields.choices(field.annotation) else text
    return yaml_text.parse(text, where)


def merged(layers: list[Layer]) -> dict[str, Any]:
    """The data of all layers, later ones over earlier ones."""
    return reduce(merge, (layer.tree for layer in layers), {})


def validate(model: type[BaseModel], layers: list[Layer]) -> Any:
    """The layers merged and checked once. Raises ConfigError, one line for each mistake."""
    tree = merged(layers)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, tree, layers))) from None


def task_of(name_or_path: str | Path) -> str:
    """The task of a config file or shipped name, before anything else in it is checked. Raises ConfigError."""
    return str(merged(read_layers(find(name_or_path))).get("task", "generate"))


def present(name_or_path: str | Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], type[BaseModel]]:
    """The data of a config that may lack what a run needs, and its model: for what one asks about it.

    Raises ConfigError, not for wrong values.
    """
    model, layers = _layered(read_layers(find(name_or_path)), overrides)
    return merged(layers), model


def load(
    name_or_path: str | Path,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Any:
    """The checked config of a file or shipped name.

    `overrides`: `key=value` texts as on the command line. `values`: the same from Python, dotted keys to data
    taken as it is. The file's `task` decides the model. `quiet`: nothing is told of what comes with them, as nobody
    asked for this config by itself. Raises ConfigError.
    """
    layers = read_layers(find(name_or_path))
    if values:
        python: dict[str, Any] = {}
        for name, value in values.items():
            put(python, tuple(name.split(".")), value)
        layers.append(Layer(PYTHON, python))
    return validate(*_layered(layers, overrides, quiet))


def _layered(layers: list[Layer], overrides: Iterable[str], quiet: bool = False) -> tuple[type[BaseModel], list[Layer]]:
    """The model, and all layers: those of the files, what they want with a choice, and the overrides.

    Raises ConfigError, not for wrong values but those of `choices`.
    """
    given = [split_override(text) for text in overrides]
    layers, choices = take_out(layers)
    model, layers = _modelled(layers, given)
    for key, (where, wanted) in choices.items():
        choices[key] = Layer(where, renamed.in_tree(model, wanted, where))
        _check_alone(model, choices[key], merged(layers))
    if given:
        layers.append(_override_layer(model, merged(put_under(choices, layers)), given, choices))
    for i, layer in enumerate(layers):
        if layer.where in (COMMAND_LINE, PYTHON) and not quiet:
            below, now = (merged(put_under(choices, layers[:n])) for n in (i, i + 1))
            tell(model, below, layer.tree, choices, now)
    return model, put_under(choices, layers)


def _check_alone(model: type[BaseModel], wanted: Layer, tree: dict[str, Any]) -> None:
    """Does what is wanted with a choice make a config, with what has no default from `tree`? Raises ConfigError."""
    needed = {key: tree[key] for key, field in model.model_fields.items() if field.is_required() and key in tree}
    validate(model, [Layer(wanted.where, needed | wanted.tree)])


def _modelled(layers: list[Layer], given: list[tuple[tuple[str, ...], str]]) -> tuple[type[BaseModel], list[Layer]]:
    """The model that the task decides, and the layers under today's keys. Raises ConfigError."""
    task = dict(given).get(("task",), merged(layers).get("task"))
    if task is None:
        raise ConfigError(f"{layers[-1].where}: task: is missing (there are: {', '.join(registry.names('task'))})")
    try:
        model = registry.config_model("task", task)
    except ConfigError as error:
        raise ConfigError(f"{COMMAND_LINE if ('task',) in dict(given) else layers[-1].where}: {error}") from None
    return model, [Layer(at, renamed.in_tree(model, tree, at)) for at, tree in layers]
