"""Another choice of a section's `name` on the command line: what both choices mean alike stays as the config has it.

    --config mvdream-toybox field.name=sdf      the hash grid and the width are those of the toybox still

What this family of configs wants with the new choice comes with it (`choices`). Between files, and for a section that
is given whole (`field={name: sdf}`), nothing stays: `fields.merge`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import reduce
from typing import Any

from pydantic import BaseModel

from threedgen.config import fields
from threedgen.config.choices import Choices
from threedgen.config.scheduled import is_step

logger = logging.getLogger(__name__)

MOST_SHOWN = 6
"""Values that are told one by one; of more only their sections."""


def swapped(
    model: type[BaseModel], tree: Any, names: dict[str, Any], choices: Choices, above: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The sections that `names` (nested data with nothing but names) swaps, each with what stays of the present `tree`.

    above: the sections that hold these.
    """
    result: dict[str, Any] = {}
    for key, inner, present, old, new in _swaps(model, tree, names):
        if new is not old:
            before = _begin(old, key, _wanted(choices, above, key, present.get("name")))
            after = _begin(new, key, _wanted(choices, above, key, inner["name"]))
            kept = {n: v for n, v in present.items() if n != "name" and n in after and after[n] == before.get(n)}
            present = result[key] = kept | {"name": inner["name"]}
        if more := swapped(new, present, inner, choices, (*above, key)):
            result[key] = fields.merge(result.get(key, {}), more)
    return result


def tell(
    model: type[BaseModel],
    tree: Any,
    given: dict[str, Any],
    choices: Choices,
    result: dict[str, Any],
    above: tuple[str, ...] = (),
) -> None:
    """A line for each section of `tree` that has another name in `given`: what stays, what comes with the name, and
    what went with the former one, so that `result` no longer has it."""
    for key, inner, present, old, new in _swaps(model, tree, given):
        wanted = _wanted(choices, above, key, inner.get("name"))
        if new is not old and (wanted or len(present) > ("name" in present)):  # else there was nothing to lose
            stay = [n for n, value in inner.items() if n != "name" and n in present and present[n] == value]
            parts = [f"unchanged: {', '.join(stay)}"] if stay else []
            parts += _coming(dict(_changes(tree, wanted, given)))
            parts += _going(_gone(_wanted(choices, above, key, present.get("name")), key, result))
            rest = "other options" if parts else "options"
            said = "; ".join([*parts, f"{rest} of this section are the defaults of {inner['name']}"])
            logger.warning("%s.name=%s: %s", ".".join((*above, key)), inner["name"], said)
        tell(new, present, inner, choices, result, (*above, key))


def _coming(values: dict[str, Any]) -> list[str]:
    """What comes with a name: its values, or of many their sections alone."""
    if len(values) <= MOST_SHOWN:
        come = ", ".join(f"{place}={fields.shown(value)}" for place, value in values.items())
        return [f"{come} come with it"] if come else []
    sections = ", ".join(dict.fromkeys(place.partition(".")[0] for place in values))
    return [f"{len(values)} values of {sections} come with it (--print-config shows them)"]


def _going(places: list[str]) -> list[str]:
    """What a former name had brought and no other one gives: its keys, or of many their sections alone."""
    shown = places if len(places) <= MOST_SHOWN else dict.fromkeys(place.partition(".")[0] for place in places)
    return [f"{', '.join(shown)} {'are' if len(places) > 1 else 'is'} the default again"] if places else []


def _gone(wanted: dict[str, Any], section: str, result: dict[str, Any]) -> list[str]:
    """The dotted keys outside of `section` that `wanted` gives, and `result` does not."""
    given = _changes({}, {key: value for key, value in wanted.items() if key != section}, {})
    return [place for place, _ in given if _found(result, place) is None]


def _found(tree: Any, place: str) -> Any:
    """What is at a dotted key, None if nothing is."""
    return reduce(fields.value_in, place.split("."), tree)


def _swaps(model: type[BaseModel], tree: Any, given: dict[str, Any]) -> Iterator[tuple[str, dict, dict, Any, Any]]:
    """Each section in `given`: its key, its data there and in `tree`, its model before and with it."""
    for key, inner in given.items():
        field = model.model_fields.get(key)
        if field is None or not isinstance(inner, dict):
            continue
        present = fields.with_default(field, fields.value_in(tree, key))
        old, new = fields.section(field, present), fields.section(field, fields.merge(present, inner))
        if old is not None and new is not None and isinstance(present, dict):
            yield key, inner, present, old, new


def _wanted(choices: Choices, above: tuple[str, ...], key: str, name: Any) -> dict[str, Any]:
    """What the family wants with a choice; of sections in sections nobody says so."""
    return {} if above or (key, name) not in choices else choices[key, name].tree


def _begin(model: type[BaseModel], key: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """What the options of a choice begin from: the defaults of its model, and over them what the family wants.

    Where two choices begin alike in an option it means the same; else it means, or wants, another thing.
    """
    defaults = {
        name: None if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }
    return defaults | wanted.get(key, {})


def _changes(tree: Any, wanted: dict[str, Any], given: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what `wanted` changes in `tree`, and `given` does not."""
    for key, value in wanted.items():
        below, above = fields.value_in(tree, key), fields.value_in(given, key)
        if isinstance(value, dict) and not any(map(is_step, value)):
            same = fields.value_in(below, "name") == value.get("name", fields.value_in(below, "name"))
            yield from _changes(below if same else {}, value, above, f"{place}{key}.")
        elif above is None and value != below:
            yield f"{place}{key}", value
