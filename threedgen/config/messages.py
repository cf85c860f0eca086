"""Conversion of pydantic's validation errors to messages of one line: `where: key: problem (got value)`."""

import re
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, TypeAlias, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from threedgen.config import fields
from threedgen.config.errors import did_you_mean, nearest, nearest_keys, printable, short
from threedgen.config.fields import Place, Tree

Key: TypeAlias = tuple[str, ...]
UNKNOWN = "unknown key"
FLAGS = ("config", "dry_run", "finish", "list", "plugin", "print_config", "quiet")
"""Flags of the command line that users write as options."""
OVERRIDES = "overrides"  # option of tasks that start runs, such as batch: changes of the configs of the runs
MAX_LINES = 30
"""Maximum number of mistakes to explain. Each one needs a slow search for similar keys."""
OWN_TEXTS = ("value_error", "schedule", "component")
"""Types of validation errors that this project raises. Users see their messages with a lower-case first letter."""
MISSING = "is missing"


class Layer(NamedTuple):
    """Values of a config from one source. Later layers replace values of earlier ones.

    Attributes:
        where: name of the source in messages, such as the path of a file or "command line".
        tree: values, as nested dicts.
        plugins: plug-in files (Python), relative to the folder of the config file.
    """

    where: str
    tree: Tree
    plugins: tuple[str, ...] = ()


def explain(error: ValidationError, model: type[BaseModel], tree: Tree, layers: Sequence[Layer]) -> list[str]:
    """Return one message per mistake that pydantic found in a config: "FILE: trainer.devices: PROBLEM (got -1)".

    After 30 messages (MAX_LINES), one more tells the number of further mistakes.

    Args:
        error: exception that pydantic raised for the values `tree`.
        model: config model.
        tree: values of all layers merged, as nested dicts.
        layers: layers of values. A message starts with the name of the layer that set the wrong value.
    """
    found: dict[Key, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_key(item, tree), []).append(item)
    places = {place.path: place for place in fields.walk(model, tree)}
    lines = []
    for key, items in list(found.items())[:MAX_LINES]:
        place, entry = places.get(key), _entry_model(places.get(key[:-2]))
        if entry is not None and items[0]["type"] == "extra_forbidden":
            problem = f"{UNKNOWN} (there are: {', '.join(entry.model_fields)})"
        elif items[0]["type"] == "extra_forbidden":
            problem = _unknown(key, model, tree)
            if problem == UNKNOWN:  # no suggestion
                key = _leaf(key, tree)
                problem = _unknown(key, model, tree)
                if problem == UNKNOWN and OVERRIDES in model.model_fields:
                    problem += f"; an option of the runs belongs in {OVERRIDES}=[{printable('.'.join(key))}=...]"
        else:
            # each member of a union type reports an error; the longest one contains the suggestion
            field = entry.model_fields.get(key[-1]) if entry else place.field if place else None
            problem = max((_problem(item, field) for item in items), key=len)
        value = reduce(fields.value_in, key, tree)
        problem = problem.replace(repr(value), short(value))
        is_section = key == () or (place is not None and place.section is not None)
        hide_value = problem == MISSING or (is_section and isinstance(value, dict))
        name = ".".join(key)
        parts = (_source(key, layers), printable(name), problem)
        lines.append(": ".join(filter(None, parts)) + ("" if hide_value else f" (got {short(value)})"))
    more = len(found) - MAX_LINES
    return [*lines, f"and {more} more mistakes"] if more > 0 else lines


def _entry_model(place: Place | None) -> type[BaseModel] | None:
    # config model of the entries of an option that is a list of sections, such as prior.loras
    kinds = get_args(place.field.annotation) if place and get_origin(place.field.annotation) is list else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _leaf(key: Key, tree: Tree) -> Key:
    # the key, or for an unknown section the key of its first value, which says more about what the user means
    while isinstance(value := reduce(fields.value_in, key, tree), dict) and value:
        first = next(iter(value))
        if not isinstance(first, str):  # a step of a schedule
            break
        key = (*key, first)
    return key


def _unknown(key: Key, model: type[BaseModel], tree: Tree) -> str:
    if len(key) == 1 and key[0] in FLAGS:
        return f"{UNKNOWN}; it is a flag: --{key[0].replace('_', '-')}"
    for place in fields.walk(model, tree):
        inside = ".".join(key[len(place.path) :])
        if inside and place.section is not None and key[: len(place.path)] == place.path:
            models = fields.alternatives(place.field).items()
            if owners := [name for name, other in models if isinstance(other, type) and inside in fields.paths(other)]:
                return f"{UNKNOWN}; it is an option of {'.'.join(place.path)}.name={' or '.join(owners)}"
    return f"{UNKNOWN}{did_you_mean(*nearest_keys('.'.join(key), fields.paths(model, tree)))}"


def _key(item: ErrorDetails, tree: object) -> Key:
    # pydantic's location without the members of union types, up to the first list that is no list of sections
    location, key = item["loc"], list[str]()
    for part in location:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
            key.append(str(part))
        elif isinstance(tree, (list, tuple)):
            tree = tree[part] if isinstance(part, int) and part < len(tree) else None
            if not isinstance(tree, dict):
                break
            key.append(str(part))
    if item["type"] == "missing" and isinstance(location[-1], str):
        key.append(location[-1])
    if item["type"] == "union_tag_invalid":
        key.append("name")
    return tuple(key) or tuple(map(str, location))  # a key of a default value is not in `tree`


def _source(key: Key, layers: Sequence[Layer]) -> str:
    # name of the last layer among those that contain the longest part of the key
    return max(enumerate(layers), key=lambda layer: (_depth(layer[1].tree, key), layer[0]))[1].where


def _depth(tree: object, key: Key) -> int:
    for depth, part in enumerate(key):
        if not isinstance(tree, dict) or part not in tree:
            return depth
        tree = tree[part]
    return len(key)


def _problem(item: ErrorDetails, field: FieldInfo | None) -> str:
    kind, context = item["type"], item.get("ctx", {})
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if kind == "missing" and isinstance(item["loc"][-1], str):
        return MISSING
    if kind in OWN_TEXTS:
        return message[:1].lower() + message[1:]
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a section of `key: value` lines"
    if kind == "string_type" and isinstance(item["input"], (int, float)):
        return "expected text: write it in quotes"
    if kind == "string_unicode":  # bytes of an argument that are not text in the locale's encoding
        return "is not Unicode text. In a terminal, set a UTF-8 locale, such as LC_ALL=C.UTF-8"
    expected = context.get("expected_tags") or context.get("expected") or ""
    names = re.findall(r"'((?:[^'\\]|\\.)*)'", str(expected))
    word = context.get("tag", item["input"])
    guess = nearest(word, names) if isinstance(word, str) else None
    if kind == "union_tag_invalid":
        return f"expected {' | '.join(names)}{did_you_mean(guess)}"
    if field is None:
        return message[:1].lower() + message[1:]
    return f"expected {fields.type_name(field.annotation, field.metadata)}{did_you_mean(guess)}"
