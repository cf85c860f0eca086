"""The texts of --help and --list, written from the config models and the shipped files."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen import config
from threedgen.config import fields, layers, registry
from threedgen.config.errors import ConfigError, did_you_mean, nearest_key
from threedgen.config.scheduled import Scheduled

USAGE = """\
Text to 3D by optimisation.

  threedgen --config NAME_OR_PATH key=value ...        (in a checkout: python launch.py ...)
  threedgen prompt="a blue dog wearing a red hat"      the default config, mvdream-toybox

  --config NAME_OR_PATH   a shipped config or a YAML file (default mvdream-toybox)
  --resume RUN            go on with the run in this folder
  --list                  every shipped config: what it does and what it needs
  --help [SECTION]        this text, or the options of one section of the config, such as trainer
  --print-config          the complete config as YAML, and nothing is run
  --dry-run               what would run, with which weights, on what, in how much memory; nothing is run
  --view                  watch the run in a browser while it optimises (section view; needs the extra viser)
  --quiet                 print the place of the result only
  --version               the version

Every option of the config is set as key=value, with dots for sections: trainer.max_steps=200. Text needs no
quotes but the shell's. A value that may change during a run takes steps too: 'key={0: 1.0, 50%: 0.5}'.
"""

HIDDEN = ("about", "needs")  # they are for --list
_BOUNDS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= ", "min_length": "length >= ", "max_length": "length <= "}
_NAMES = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
_SCHEDULE_MARK = get_args(Scheduled)[1]


def type_name(annotation: Any) -> str:
    """An annotation in a user's words: `number`, `auto | numba`, `list of 3: number`, ..."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is Literal:
        return " | ".join(str(choice) for choice in inner)
    if hasattr(annotation, "__metadata__"):
        return "number or schedule" if _SCHEDULE_MARK in annotation.__metadata__ else type_name(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_name(choice) for choice in inner))
    if origin is dict:
        return "section of key: value"
    if origin in (tuple, list):
        kinds = list(dict.fromkeys(type_name(choice) for choice in inner if choice is not Ellipsis))
        count = "" if Ellipsis in inner or origin is list else f" of {len(inner)}"
        return f"list{count}: {', '.join(kinds)}"
    return getattr(annotation, "__name__", str(annotation)).lower()


def field_type(field: FieldInfo) -> str:
    """The type of a field, its bounds included: `number >= 0 <= 1`."""
    name = "number or schedule" if _SCHEDULE_MARK in field.metadata else type_name(field.annotation)
    found = [(sign, getattr(mark, key, None)) for mark in field.metadata for key, sign in _BOUNDS.items()]
    limits = [(sign, f"{limit:.6g}" if isinstance(limit, float) else limit) for sign, limit in found]
    return " ".join([name, *(f"{sign}{limit}" for sign, limit in limits if limit is not None)])


def options(model: type[BaseModel], tree: dict, only: str = "") -> str:
    """The table of options of a model, or of one section. `tree` holds what the config gives.

    Raises ConfigError if there is no section `only`.
    """
    rows: list[tuple[str, ...]] = []
    for place in fields.walk(model, tree):
        name, field = ".".join(place.path), place.field
        hidden = name in HIDDEN and not only
        if hidden or only and name != only and not name.startswith(f"{only}."):
            continue
        if place.section is not None:
            text = field.description or (place.section.__doc__ or "").strip().partition("\n")[0]
            rows.append((f"\n{name}:", text))
        else:
            missing = place.value is None and field.is_required()
            value = "(to be given)" if missing else fields.shown(fields.plain(place.value))
            rows.append((f"  {name}", field_type(field), value, field.description or ""))
    if not rows:
        guess = nearest_key(only, fields.paths(model, tree))
        raise ConfigError(f"no section or key has this name{did_you_mean(guess)} (got '{only}')", "--help")
    return "\n".join(_align(rows))


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of four as columns; rows of two (headings) as they are."""
    table = [row for row in rows if len(row) == 4]
    widths = [min(max((len(row[column]) for row in table), default=0), 34) for column in range(3)]
    wide = [
        [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] if len(row) == 4 else [row[0]]
        for row in rows
    ]
    return ["  ".join([*cells, row[-1]]).rstrip() for cells, row in zip(wide, rows, strict=True)]


def help_text(config_name: str, section: str = "") -> str:
    """--help for a config: usage, and every option with type, value and description. Raises ConfigError."""
    tree = layers.merged(layers.read_layers(layers.find(config_name)))
    model = registry.config_model("task", tree.get("task", ""))
    if section:
        return options(model, tree, section) + "\n"
    title = f"Options of {Path(config_name).stem} (key, type and bounds, value, meaning):\n"
    return "\n".join([USAGE, title, options(model, tree)]) + "\n"


def list_text() -> str:
    """--list: each shipped config, what it does, what it needs. A broken file is named, not raised."""
    lines = []
    for name in config.shipped():
        try:
            tree = layers.merged(layers.read_layers(layers.find(name)))
        except ConfigError as error:
            lines.append(f"{name}\n    cannot be read: {error}")
            continue
        about, needs = tree.get("about") or "(no description)", tree.get("needs") or "nothing more"
        lines.append(f"{name}\n    {about}\n    needs: {needs}")
    return "\n".join(lines) + "\n"
