"""The text of --help, written from the config models, in lines of the terminal's width."""

from __future__ import annotations

import shutil
import textwrap
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen.config import fields, layers, registry
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, called, did_you_mean, nearest_keys
from threedgen.config.scheduled import Scheduled

ABOUT = "Text to 3D by optimisation."
COMMANDS = {
    'prompt="a red penguin"': "the default config, mvdream-toybox",
    "--config NAME_OR_PATH key=value ...": "another config, other values",
}
"""What stands behind the command, and what it does."""
FLAGS = {
    "--config NAME_OR_PATH": "a shipped config or a YAML file (default mvdream-toybox)",
    "--plugin FILE": "import a file of yours first, which adds a loss, a prior, ... (docs/plugins.md)",
    "--resume RUN": "go on with the run in this folder",
    "--list": "every shipped config: what it does and what it needs",
    "--help [SECTION]": "this text, or the options of one section of the config, such as trainer, or of another "
    "choice of it: --help field field.name=sdf",
    "--print-config": "the complete config as YAML, and nothing is run",
    "--dry-run": "what would run, with which weights, on what, in how much memory; nothing is run",
    "--view": "watch the run in a browser while it optimises (section view; needs the extra viser)",
    "--quiet": "print the place of the result only",
    "--version": "the version",
}
KEYS = (
    "Every option of the config is set as key=value, with dots for sections: trainer.max_steps=200. Text needs no "
    "quotes but the shell's. A value that may change during a run takes steps too: 'key={0: 1.0, 50%: 0.5}'."
)

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


def usage() -> str:
    """How the command is called, with which flags."""
    commands = [f"  {command()} {words}\n{wrapped(about, 6)}" for words, about in COMMANDS.items()]
    column = max(map(len, FLAGS)) + 4
    flags = [wrapped(about, column, f"  {flag}".ljust(column)) for flag, about in FLAGS.items()]
    return "\n".join([ABOUT, "", *commands, "", *flags, "", wrapped(KEYS), ""])


def options(model: type[BaseModel], tree: dict, only: str = "") -> str:
    """Every option of a model, or of one section. `tree` holds what the config gives.

    Raises ConfigError if there is no section `only`, or for a section of a name that there is not.
    """
    lines: list[str] = []
    names: dict[tuple[str, ...], dict[str, str]] = {}
    for place in fields.walk(model, tree):
        name, field = ".".join(place.path), place.field
        names[(*place.path, "name")] = choices(name, field, place.value)
        hidden = name in fields.INTERNAL and not only
        if hidden or only and name != only and not name.startswith(f"{only}."):
            continue
        if place.section is not None:
            text = field.description or _first_sentence(place.section)
            lines += ["", wrapped(text, 4, f"{name}: ")]
        else:
            lines += _option(name, place, names.get(place.path, {}))
    if not lines:
        raise ConfigError(f"no section or key has this name{_hint(only, model, tree)} (got '{only}')", "--help")
    return "\n".join(lines)


def _hint(only: str, model: type[BaseModel], tree: dict) -> str:
    """What may be meant by a section that there is not: a config, a name much like it, or any of those there are."""
    if only in layers.shipped():
        return f"; of the config it is {command('--config', only, '--help')}"
    if guesses := nearest_keys(only, fields.paths(model, tree)):
        return did_you_mean(*guesses)
    sections = [place.path[0] for place in fields.walk(model, tree) if place.section and len(place.path) == 1]
    return f"; the sections are {', '.join(sections)}" if sections else ""


def _option(name: str, place: fields.Place, names: dict[str, str]) -> list[str]:
    """An option's key, value and type, and below them what it means, or what the choices of a `name` are."""
    missing = place.value is None and place.field.is_required()
    value = "(to be given)" if missing else fields.shown(fields.plain(place.value))
    if names:
        column = max(map(len, names)) + 8
        return [
            f"  {name} = {value}",
            *(wrapped(about, column, f"      {n}".ljust(column)) for n, about in names.items()),
        ]
    about = [wrapped(place.field.description, 6, " " * 6)] if place.field.description else []
    return [wrapped(f"({field_type(place.field)})", 6, f"  {name} = {value}  "), *about]


def choices(key: str, field: FieldInfo, value: Any) -> dict[str, str]:
    """The names that the section `key` can have, each with a line on what it is; none if there is one kind only.

    Raises ConfigError if the present value names none of them.
    """
    mark = fields.component(field)
    if mark is None:
        models = {name: kind for kind in fields.section_models(field) for name in fields.model_names(kind)}
        return {name: _first_paragraph(kind) for name, kind in models.items()}
    chosen = fields.value_in(value, "name")
    if chosen is not None:
        with called(f"{key}.name"):
            registry.entry(mark.kind, chosen)
    return {name: _about(mark.kind, name) for name in mark.only or registry.names(mark.kind)}


def _about(kind: str, name: str) -> str:
    try:
        return _first_paragraph(registry.config_model(kind, name))
    except Exception as error:  # a plug-in's own: it must not take away the help for all others
        return f"cannot be loaded ({type(error).__name__})"


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().partition("\n\n")[0].split())


def _first_sentence(model: type[BaseModel]) -> str:
    sentence, end, _ = _first_paragraph(model).partition(". ")
    return sentence + end.strip()


def width() -> int:
    """Columns of the terminal, or COLUMNS, as far as lines can be read well."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 40), 120)


def wrapped(text: str, indent: int = 0, lead: str | None = None) -> str:
    """The text in lines of the terminal's width; `lead` stands before the first, `indent` spaces before the others."""
    lead = " " * indent if lead is None else lead
    how: Any = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * indent}
    if len(lead) + len(text) > width() < len(lead) + 20:  # little room beside it
        return f"{textwrap.fill(lead.rstrip(), width(), **how)}\n{wrapped(text, indent)}"
    return textwrap.fill(text, width(), initial_indent=lead, **how)


def help_text(config_name: str, section: str = "", overrides: list[str] | None = None) -> str:
    """--help for a config with these overrides: usage, and every option with value, type and description.

    Raises ConfigError.
    """
    tree, model = layers.present(config_name, overrides or [])
    if section:
        return options(model, tree, section).lstrip("\n") + "\n"
    title = f"Options of {Path(config_name).stem} (key = value, type and bounds, meaning):"
    return "\n".join([usage(), wrapped(title), "", options(model, tree)]) + "\n"
