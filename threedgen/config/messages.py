"""pydantic's findings as lines a user can act on: `where: key: problem (got value)`."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import reduce
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from threedgen.config import fields
from threedgen.config.errors import did_you_mean, nearest, short
from threedgen.config.unknown import unknown

MOST = 30
"""Mistakes that are explained; a file of another kind has them in thousands."""
NO_LIST, LENGTH = ("tuple_type", "list_type"), ("too_short", "too_long", "missing")
"""What pydantic calls it if something is no list, or one of another length."""


def explain(error: ValidationError, model: type[BaseModel], tree: dict, layers: list) -> list[str]:
    """One line for each wrong key of `tree` (the merged data); `layers` tell in which file it stands."""
    places = {place.path: place for place in fields.walk(model, tree)}
    problems: dict[tuple, list[str]] = {}
    values: dict[tuple, Any] = {}
    more = 0
    for item in map(_at_its_key, error.errors(include_url=False)):
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            continue  # only without those that are wrong, which are told
        key = _key(item, tree)
        listed = _list_key(item, key, tree)
        key = key if listed is None else listed
        if len(problems) == MOST and key not in problems:  # the search for what was meant takes its time
            more += 1
            continue
        if listed is None:
            values.setdefault(key, None if item["type"] == "missing" else item["input"])
            problem = _problem(item)
        else:
            value = values.setdefault(key, reduce(fields.value_in, key, tree))
            problem = _list_problem(item, value, places[key].field if key in places else None)
        if item["type"] == "extra_forbidden":
            problem = unknown(tuple(map(str, key)), model, tree)
        if problem not in problems.setdefault(key, []):
            problems[key].append(problem)
    sections = {path for path, place in places.items() if place.section} | {()}
    lines = []
    for key, found in problems.items():
        whole = isinstance(values[key], (dict, BaseModel)) and key in sections  # a rule between its fields
        got = "" if found == ["is missing"] or whole else f" (got {short(values[key])})"
        name = ".".join(str(part) for part in key)
        name = name if name.isprintable() else short(name)  # control characters would reach the terminal
        lines.append(": ".join(part for part in (_where(key, layers), name, " or ".join(found)) if part) + got)
    return [*lines, f"and {more} more mistakes"] if more else lines


def _at_its_key(item: Any) -> Any:
    """A mistake that pydantic reports for a section, though it is one key's: as one of that key."""
    if item["type"] == "key":
        key, value, message = item["ctx"]["key"], item["ctx"]["value"], item["ctx"]["problem"]
    elif item["type"] == "union_tag_invalid":
        key, value = "name", item["ctx"]["tag"]
        guess = did_you_mean(nearest(value, re.findall(r"'([^']*)'", item["ctx"]["expected_tags"])))
        message = f"should be one of {item['ctx']['expected_tags']}{guess}"
    elif item["type"] == "component_name" and isinstance(item["input"], dict) and "name" in item["input"]:
        key, value, message = "name", item["input"]["name"], item["msg"]
    else:
        return item
    return {**item, "loc": (*item["loc"], key), "input": value, "msg": message}


def _key(item: Any, tree: Any) -> tuple:
    """pydantic's location without what is not in the data: tags of unions, types of their branches."""
    loc, key = item["loc"], []
    for part in loc:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, (list, tuple)) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            continue
        key.append(part)
    if item["type"] == "missing":
        key.append(loc[-1])
    return tuple(key) or loc  # the mistake may be in a default, which the data does not have


def _list_key(item: Any, key: tuple, tree: Any) -> tuple | None:
    """The key of the list that the mistake is in, of lists in lists the outermost; None if it is in none."""
    for depth, part in enumerate(key):
        if isinstance(tree, (list, tuple)) and all(isinstance(number, int) for number in key[depth:]):
            return key[:depth]
        tree = fields.value_in(tree, part) if isinstance(part, str) else None
    return key if item["type"] in NO_LIST or item["type"] in LENGTH and isinstance(tree, (list, tuple)) else None


def _list_problem(item: Any, value: Any, field: FieldInfo | None) -> str:
    if item["type"] in NO_LIST + LENGTH:
        return f"should be a list{_such_as(field, value)}"
    return f"{short(item['input'])} in this list {_problem(item)}"


def _such_as(field: FieldInfo | None, value: Any) -> str:
    """An example of a list that is right: what was given, its examples or its default; "" if there is none."""
    if field is None:
        return ""
    given = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    kind: Any = Annotated[field.annotation, field]
    for example in (given, *(field.examples or ()), default):
        if isinstance(example, (list, tuple)) and example:
            with suppress(ValidationError):
                TypeAdapter(kind).validate_python(example)
                return f" such as {fields.shown(fields.plain(example))}"
    return ""


def _where(key: tuple, layers: list) -> str:
    """The layer that gives most of this key: itself, or a section that should hold it; of several the last."""
    return max(enumerate(layers), key=lambda layer: (_depth(layer[1].tree, key), layer[0]))[1].where


def _depth(tree: Any, key: tuple) -> int:
    """How many parts of the key there are in the data."""
    for depth, part in enumerate(key):
        if not isinstance(tree, dict) or part not in tree:
            return depth
        tree = tree[part]
    return len(key)


def _problem(item: Any) -> str:
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "literal_error":
        options = re.findall(r"'((?:[^'\\]|\\.)*)'", item["ctx"]["expected"])
        guess = nearest(item["input"], options) if isinstance(item["input"], str) else None
        return f"should be {item['ctx']['expected']}{did_you_mean(guess)}"
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a section of `key: value` lines"
    if item["type"] == "string_type" and isinstance(item["input"], (int, float)):
        return "should be text: write it in quotes"
    message = item["msg"].partition(", unable to parse")[0].removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]
