"""Load configs: merge YAML files and overrides, then check the result. Imports no torch.

    config = load("mvdream-toybox", ["prompt=a blue dog", "trainer.max_steps=100"])

A config is merged from layers. Later layers replace values of earlier ones. The order is: defaults of the model, the
applicable `choices`, the file that the key `base` of the file names, the file itself, the command line. The key
`choices: {prior: {mvdream: VALUES}}` of a file sets VALUES for the whole config if `prior.name` is mvdream.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from threedgen.config import fields, registry, yaml_text
from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.config.fields import Tree, merge, nested
from threedgen.config.messages import Key, Layer, explain
from threedgen.places import folder

COMMAND_LINE, PYTHON = "command line", "arguments"
CHOICES = "choices"
NESTED_LISTS = r"\[([^]['\x22{}]|\[[^]['\x22{}]*\])*\]"
"""Regular expression for a list of texts with lists in them, such as "[a=[1, 2], b=3]", which YAML refuses."""
STAGES = "stages"  # earlier runs of the task generate, by name
PRESETS = "presets"  # folder in configs/ with values for any config of the task generate, see `preset_layers`


def load(name_or_path: str | Path, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Any:
    """Load a config and check its values. Returns an instance of the config model that the key `task` selects.

    Args:
        name_or_path: config file, or name of a config that comes with the project (a shipped config).
        overrides: texts "key=value", such as "trainer.max_steps=100". The values are parsed as YAML.
        values: overrides from Python: dict from dotted key to value. Values that are text are not parsed. If
            `overrides` has the same key, it wins.

    Raises:
        ConfigError: the config has mistakes, one per line of the message.
    """
    return validate(*load_layers(name_or_path, overrides, values))


def load_layers(
    name_or_path: str | Path, overrides: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> tuple[type[BaseModel], list[Layer]]:
    """Return the config model of a config, and its unchecked values as `Layer`s; later layers replace earlier values.

    A layer has the values of one source. The layers are, in this order:

    1. the names of the selected components (see below);
    2. the config file, after the file that its key `base` names (which comes after its own base, and so on);
    3. `values`;
    4. `overrides`.

    A memory preset (file of options for a small GPU) is a layer directly before the one whose key `preset` names it.

    The key `name` of a section (nested config), such as `prior.name`, selects a component; the other keys of the
    section are options of this component. So a layer with another `name` than the layers before it drops all their
    options of the section. Layer 1 makes this work too if a file sets options of a section without a `name`, that is,
    for the default component. It has a `name` for each section in the files or `values`: the one that they set, else
    the default.

    Args:
        name_or_path: config file, or name of a config that comes with the project.
        overrides: texts "key=value", such as "trainer.max_steps=100".
        values: dict from dotted key to value.

    Raises:
        ConfigError: a file is missing or invalid, the task is missing or unknown, or an override cannot be parsed.
    """
    layers = [part for layer in read_layers(find(name_or_path)) for part in (*preset_layers(layer.tree), layer)]
    if values:
        layers += preset_layers(values)
        layers.append(Layer(PYTHON, _merge_all(nested(tuple(key.split(".")), value) for key, value in values.items())))
    given = [split_override(text) for text in overrides]
    layers += preset_layers({"preset": dict(given).get(("preset",))})
    task = dict(given).get(("task",), merged(layers).get("task"))
    where = COMMAND_LINE if ("task",) in dict(given) else layers[-1].where
    if task is None:
        raise ConfigError(f"{where}: task: is missing (there are: {', '.join(registry.names('task'))})")
    try:
        model = registry.config_model("task", task)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    _check_choices(model, layers)
    layers = [layer._replace(tree=_with_sections(model, layer.tree)) for layer in layers]
    layers = [_default_names(model, merged(layers)), *layers]
    return model, [*layers, _override_layer(model, layers, given)] if given else layers


def validate(model: type[BaseModel], layers: Sequence[Layer]) -> Any:
    """Merge layers of values, check them, and return them as a config, an instance of `model`.

    A layer has the values of one source, such as a config file or the command line. If several layers set the same key,
    the last one counts. Raises ConfigError, with one line per mistake, if the merged values are not valid for the
    model.
    """
    tree = merged(layers)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, tree, [*_chosen(layers), *layers]))) from None


def merged(layers: Sequence[Layer]) -> Tree:
    """Merge layers to one nested dict; later layers replace values of earlier ones.

    The key `choices` of a layer sets values that depend on a selected component. `choices: {SECTION: {NAME: VALUES}}`
    adds the nested dict VALUES to the root of the config if the layers set SECTION.name to NAME. For example, with
    `choices: {prior: {mvdream: {size: 64}}}`, `size` is 64 if `prior.name` is mvdream. The `choices` of all layers are
    applied, and are not in the result. Values that any layer sets outside `choices` win over them.

    Raises ConfigError if `choices` has another form.
    """
    own = _merge_all(layer.tree for layer in layers)
    own.pop(CHOICES, None)
    return merge(_merge_all(layer.tree for layer in _chosen(layers)), own)


def _merge_all(trees: Iterable[Tree]) -> Tree:
    return reduce(merge, trees, {})


def _chosen(layers: Sequence[Layer]) -> list[Layer]:
    # the VALUES in `choices: {SECTION: {NAME: VALUES}}` for which the merged config has SECTION.name = NAME
    own = _merge_all(layer.tree for layer in layers)
    return [part for section, name, part in _choices(layers) if name == fields.value_in(own.get(section), "name")]


def _check_choices(model: type[BaseModel], layers: Sequence[Layer]) -> None:
    for section, name, part in _choices(layers):
        known = fields.alternatives(model.model_fields[section]) if section in model.model_fields else {}
        if name not in known:
            guess = did_you_mean(nearest(name, known) or nearest(section, model.model_fields))
            raise ConfigError(f"{part.where}: unknown section or name{guess}")


def _choices(layers: Sequence[Layer]) -> Iterator[tuple[str, str, Layer]]:
    # (section, name, layer of VALUES) for each entry of `choices: {SECTION: {NAME: VALUES}}`
    for layer in layers:
        where = f"{layer.where}: {CHOICES}"
        for section, names in _items(layer.tree.get(CHOICES, {}), where):
            for name, values in _items(names, f"{where}.{section}"):
                _items(values, f"{where}.{section}.{name}")
                yield section, name, Layer(f"{where}.{section}.{name}", values)


def _items(tree: object, where: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: should be a section of `key: value` lines (got {short(tree)})")
    return [(str(key), value) for key, value in tree.items()]


def shipped() -> list[str]:
    """Return the names of the configs that come with the project, such as "mvdream-toybox"."""
    root = folder("configs")
    files = (path for path in root.rglob("*.yaml") if path.parent.name != PRESETS)
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in files)


def find(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """Return the path of a config file. Raises ConfigError, with a similar name as suggestion, if it does not exist.

    `name_or_path` is a path relative to `beside` (None: the working directory) or, if there is no such file, the name
    of a config that comes with the project. The suffix `.yaml` can be left out.
    """
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
    """Read a config file and, recursively, the file that its key `base` names.

    Returns one `Layer` per file; the layer of `path` is the last. `chain` is for the recursion: the files whose keys
    `base` led to this file. Raises ConfigError if a file is missing or invalid, or if the keys `base` form a cycle.
    """
    chain = (*chain, path.resolve())
    if chain[-1] in chain[:-1]:
        circle = " -> ".join(link.name for link in chain[chain.index(chain[-1]) :])
        raise ConfigError(f"{path}: base: the files build on each other in a circle: {circle}")
    tree = yaml_text.read(path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: should hold `key: value` lines (got {short(tree)})")
    base, plugins = tree.pop("base", None), tree.pop("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(file, str) for file in plugins):
        raise ConfigError(f"{path}: plugins: should be a list of files (got {short(plugins)})")
    layer = Layer(str(path), tree, tuple(plugins))
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: should be one file or name (got {short(base)})")
    try:
        below = find(base, beside=path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}") from None
    return [*read_layers(below, chain), layer]


def preset_layers(tree: Mapping[str, Any]) -> list[Layer]:
    """Return a list with the `Layer` of the memory preset that `tree["preset"]` names; [] if it names no preset.

    A memory preset is a file of options for a GPU with little memory, such as configs/presets/memory-8gb.yaml. `tree`
    is a config as a nested dict. The values in `tree` win over those of the preset, so the caller puts the preset's
    layer first.
    """
    name = tree.get("preset")
    if not isinstance(name, str) or not re.fullmatch(r"memory-\w+", name):
        return []
    path = folder("configs") / PRESETS / f"{name}.yaml"
    return [Layer(str(path), yaml_text.read(path))] if path.is_file() else []


def task_of(name_or_path: str | Path) -> str:
    """Read a config and return only the value of its key `task`; "generate" if the key is missing.

    Raises ConfigError if the config does not exist or cannot be read.
    """
    return str(merged(read_layers(find(name_or_path))).get("task", "generate"))


def _with_sections(model: type[BaseModel], tree: Tree) -> Tree:
    # component sections can be text: `field: sdf` becomes `field: {name: sdf}`
    marks = {key: fields.component(field) for key, field in model.model_fields.items() if key in tree}
    texts = {key: mark.section(tree[key]) for key, mark in marks.items() if mark and isinstance(tree[key], str)}
    return tree | texts


def _default_names(model: type[BaseModel], tree: Tree) -> Layer:
    # The `name` of each component section, or its default name. With it, `merge` sees that an override such as
    # field.name=sdf selects another component, and drops the options that a file sets for the default component.
    names: Tree = {}
    for place in fields.walk(model, tree):
        given = reduce(fields.value_in, place.path, tree)
        if isinstance(given, dict) and place.section is not None and fields.model_names(place.section):
            name = given.get("name", fields.model_names(place.section)[0])
            names = merge(names, nested((*place.path, "name"), name))
    return Layer("defaults", names)


def split_override(text: str) -> tuple[Key, str]:
    """Split "a.b=text" at the first "=" into (("a", "b"), "text"). Raises ConfigError if there is no key or "="."""
    if text.startswith("'"):
        problem = 'this shell, such as cmd.exe, passes single quotes on. Use double quotes: "key=value"'
        raise ConfigError(f"{COMMAND_LINE}: {problem} (got {short(text)})")
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigError(f"{COMMAND_LINE}: an override is written key=value, such as seed=3 (got {short(text)})")
    return parts, value


def _override_layer(model: type[BaseModel], layers: Sequence[Layer], given: list[tuple[Key, str]]) -> Layer:
    # unknown keys are included: `validate` reports them
    layer, problems = Layer(COMMAND_LINE, {}), []
    inner = {key[:length] for key, _ in given for length in range(1, len(key))}
    files = merged(layers)
    for key, text in sorted(given, key=lambda one: _order(one[0], one[1], inner)):
        try:
            tree = merged([*layers, layer])
            _check_stage(files, tree, key)
            value = _value(model, tree, key, text)
            layer = Layer(COMMAND_LINE, merge(layer.tree, nested(key, value)))
        except ConfigError as error:
            problems.append(f"{COMMAND_LINE}: {'.'.join(key)}: {error} (got {short(text)})")
    if problems:
        raise ConfigError("\n".join(problems))
    return layer


def _check_stage(files: Tree, tree: Tree, key: Key) -> None:
    # a misspelt name would otherwise be a further stage, which is trained for hours
    names = tree.get(STAGES)
    if key[0] != STAGES or len(key) < 3 or not files.get(STAGES) or not isinstance(names, dict):
        return
    names = [*map(str, names)]
    if key[1] in names:
        return
    last = f"the run after the stages takes {'.'.join(key[2:])}=..."
    raise ConfigError(f"unknown stage{did_you_mean(nearest(key[1], names))} (there are: {', '.join(names)}; {last})")


def _order(key: Key, text: str, inner: set[Key]) -> tuple[int, int]:
    # Sort key: names of components come first, outer sections before inner ones. A word for a section whose options
    # are overridden too (`inner`) is a name, as in `field=sdf field.width=8`.
    section = key[:-1] if key[-1] == "name" else key
    is_name = key[-1] == "name" or (key in inner and re.fullmatch(r"[A-Za-z][\w-]*", text) and text != "null")
    return (0, len(section)) if is_name else (1, 0)


def _value(model: type[BaseModel], tree: Tree, key: Key, text: str) -> Any:
    found = {place.path: place.field for place in fields.walk(model, tree)}
    field = found.get(key)
    mark = fields.component(field) if field else None
    if mark and text != "null" and text[:1] not in ("", "{", "["):
        return mark.section(text)
    if field is not None and fields.is_text(field):
        is_null = text == "null" and type(None) in fields.members(field.annotation)
        return None if is_null else text
    if field is None and not any(key[:n] in found and fields.is_dict(found[key[:n]]) for n in range(1, len(key))):
        return text  # the key is unknown: `validate` reports it
    try:
        return yaml_text.parse(text, "value")
    except ConfigError:
        if field is None or field.annotation != tuple[str, ...] or not re.fullmatch(NESTED_LISTS, text):
            raise
        return [item.strip() for item in re.findall(r"(?:\[[^]]*\]|[^,[])+", text[1:-1]) if item.strip()]
