"""Texts of --help and --list, generated from the config models and wrapped to the width of the terminal."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel

from threedgen.config import fields, layers, registry, yaml_text
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, did_you_mean, errors_name_key, nearest_keys
from threedgen.config.fields import Place

Places: TypeAlias = dict[str, Place]

DEFAULT = "mvdream-toybox"
COMMANDS = {
    'prompt="a red penguin"': f"the default config, {DEFAULT}: text to 3D",
    "--config NAME_OR_PATH key=value ...": "another config, other values; --list has all configs",
}
"""Dict from example arguments of the command to their meaning, for the usage text."""
FLAGS = {
    "--config NAME_OR_PATH": f"a shipped config or a YAML file (default {DEFAULT})",
    "--plugin FILE": "import a Python file first, which adds a loss, a prior, ... (docs/plugins.md)",
    "--resume RUN": "continue the run in this folder",
    "--finish": "write the results of the run's last checkpoint now, without further steps",
    "--list": "every shipped config: what it does and what it needs",
    "--print-config": "print the complete config as YAML and run nothing",
    "--dry-run": "print what would run, with which weights, device and memory, and run nothing",
    "--view": 'watch the run in a browser while it optimises (section view; needs pip install ".[viser]")',
    "--log-level LEVEL": "debug, info (default), warning or error",
    "--quiet": "print only the folder of the result",
    "--version": "print the version",
    "--help [SECTION]": "the common options; all options; or those of a section: --help all, --help trainer, "
    "--help field field.name=sdf",
}
KEYS = (
    "Every option of the config is set as key=value, with dots for sections: trainer.max_steps=200. Text needs no "
    "quotes but the shell's. A value that may change during a run also takes steps: 'key={0: 1.0, 50%: 0.5}'."
)
ALL = "all"
COMMON = ("trainer.max_steps", "trainer.accelerator", "trainer.devices", "training.batch", "training.learning_rate")
"""Keys of options in sections that --help lists if the attribute `common` of the task's config model is empty."""


def help_text(config_name: str, section: str = "", overrides: Sequence[str] = ()) -> str:
    """Return the text that --help prints for a config.

    Raises ConfigError if the config is missing or invalid, or has no section or option `section`.

    Args:
        config_name: config file, or name of a config that comes with the project.
        section: key of a section or option; "all": all options; "": usage and common options.
        overrides: texts "key=value" that change the shown values.
    """
    model, found = layers.load_layers(config_name, overrides)
    places = {".".join(place.path): place for place in fields.walk(model, layers.merged(found))}
    places = {key: place for key, place in places.items() if key not in fields.INTERNAL}
    for key, place in places.items():
        _check_name(key, place)
    if section:
        inside = [key for key in places if section == ALL or key == section or key.startswith(f"{section}.")]
        if not inside:
            raise ConfigError(f"no section or key has this name{_hint(section, places)} (got '{section}')", "--help")
        return "\n".join(line for key in inside for line in _option_lines(key, places)).lstrip("\n") + "\n"
    common = [key for key in places if _is_common(key, model, places)]
    title = f"Common options of {Path(config_name).stem} (key = value, type and bounds, meaning):"
    count = sum(place.section is None for place in places.values())
    more = f"--help {ALL} shows all {count} options, --help SECTION those of a section: {', '.join(_sections(places))}."
    lines = [line for key in common for line in _option_lines(key, places)]
    return "\n".join([usage(config_name, layers.merged(found)), wrap(title), "", *lines, "", wrap(more)]) + "\n"


def usage(config_name: str = DEFAULT, tree: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the usage text: purpose of a config, forms of the command, flags, and the syntax of options.

    Args:
        config_name: config file, or name of a config that comes with the project.
        tree: content of the config. Only the keys "about" (description) and "needs" (requirements) are used.
    """
    about, needs = tree.get("about"), tree.get("needs") or "nothing more"
    own = {} if config_name == DEFAULT else {f"--config {config_name} key=value ...": f"this config; needs: {needs}"}
    head = [wrap(f"{Path(config_name).stem}: {about}"), ""] if about else []
    forms = (own | COMMANDS).items()
    commands = [f"{wrap(f'{command()} {words}', 6, '  ')}\n{wrap(meaning, 6)}" for words, meaning in forms]
    column = max(map(len, FLAGS)) + 4
    flags = [wrap(about, column, f"  {flag}".ljust(column)) for flag, about in FLAGS.items()]
    return "\n".join([*head, *commands, "", *flags, "", wrap(KEYS), ""])


def _is_common(key: str, model: type[BaseModel], places: Places) -> bool:
    own: tuple[str, ...] = getattr(model, "common", ())
    if own or places[key].section is not None:
        return key in own
    return key in COMMON or "." not in key or key.count(".") == 1 and bool(_choices(key, places))


def _choices(key: str, places: Places) -> Mapping[str, type[BaseModel] | Exception]:
    section, _, last = key.rpartition(".")
    return fields.alternatives(places[section].field) if section in places and last == "name" else {}


def _sections(places: Places) -> list[str]:
    return [key for key, place in places.items() if place.section is not None and "." not in key]


def _check_name(key: str, place: Place) -> None:
    mark = fields.component(place.field)
    if mark and place.section is None:
        with errors_name_key(f"{key}.name"):
            registry.entry(mark.kind, fields.value_in(place.value, "name"))


def _hint(section: str, places: Places) -> str:
    if section in layers.shipped():
        return f"; of the config it is {command('--config', section, '--help')}"
    if guesses := nearest_keys(section, places):
        return did_you_mean(*guesses)
    sections = _sections(places)
    return f"; the sections are {', '.join(sections)}" if sections else ""


def _option_lines(key: str, places: Places) -> list[str]:
    place = places[key]
    if place.section is not None:
        return ["", wrap(place.field.description or _about(place.section), 4, f"{key}: ")]
    choices, plain = _choices(key, places), fields.plain(place.value)
    if plain is None and choices:  # the section has the default of its kind
        mark = fields.component(places[key.rpartition(".")[0]].field)
        plain = None if mark is None else mark.default
    missing = plain is None and place.field.is_required()
    value = "(required)" if missing else yaml_text.write_line(plain)
    if choices:
        column = max(map(len, choices)) + 8
        meanings = [wrap(_about(model), column, f"      {name}".ljust(column)) for name, model in choices.items()]
        return [f"  {key} = {value}", *meanings]
    kind = fields.type_name(place.field.annotation, place.field.metadata)
    meaning = [wrap(place.field.description, 6, " " * 6)] if place.field.description else []
    return [wrap(f"({kind})", 6, f"  {key} = {value}  "), *meaning]


def _about(model: type[BaseModel] | Exception) -> str:
    if isinstance(model, Exception):
        return f"cannot be loaded ({type(model).__name__})"
    return " ".join((model.__doc__ or "").strip().partition("\n\n")[0].split())


def width() -> int:
    """Return the width of the terminal (or the variable COLUMNS) in characters, clamped to [40, 120]."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 40), 120)


def wrap(text: str, indent: int = 0, lead: str | None = None) -> str:
    """Wrap a text at the terminal's width, with `indent` spaces before each line.

    If `lead` is given, such as "  trainer.max_steps  ", the first line starts with `lead` in place of the spaces, and
    the text follows on the same line. If the text does not fit there and less than 20 columns are left beside `lead`,
    `lead` gets a line of its own.
    """
    lead = " " * indent if lead is None else lead
    how: Any = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * indent}
    if len(lead) + len(text) > width() < len(lead) + 20:  # less than 20 columns are left beside `lead`
        return f"{textwrap.fill(lead.rstrip(), width(), **how)}\n{wrap(text, indent)}"
    return textwrap.fill(text, width(), initial_indent=lead, **how)


GROUPS = {
    "make": "objects, views and scenes from text, images and meshes",
    "look": "at results",
    "train": "models, and make their training data",
    "measure": "results",
}
TASKS = {
    "look": ("report", "gallery", "toybox-sheet"),
    "train": ("train-", "mvdreambooth", "make-", "toybox-subjects"),
    "measure": ("evaluate-", "consistency", "janus-"),
}
"""Groups of configs in --list: dict from group to prefixes of task names. Other tasks are in the group "make"."""


class Shipped(NamedTuple):
    """Entry of --list for a shipped config (one that comes with the project).

    Attributes:
        name: name of the config.
        group: heading under which the config is listed, by what its task does: "make" makes objects, views or scenes,
            "look" shows results, "train" trains models or makes their training data, "measure" measures results.
        about: description of the config.
        needs: requirements, such as a GPU or a data set.
    """

    name: str
    group: str
    about: str
    needs: str


def shipped_entry(name: str) -> Shipped:
    """Return the entry of --list for the config `name`, which comes with the project.

    If its file cannot be read, the description is the error.
    """
    try:
        tree = layers.merged(layers.read_layers(layers.find(name)))
    except ConfigError as error:
        return Shipped(name, "make", f"cannot be read: {error}", "another file")
    task = str(tree.get("task", ""))
    group = next((group for group, names in TASKS.items() if task.startswith(names)), "make")
    return Shipped(name, group, tree.get("about") or "(no description)", tree.get("needs") or "nothing more")


def list_text(default: str) -> str:
    """Return the text of --list: the configs that come with the project, grouped by purpose, such as "train".

    In each group, configs that need a GPU are last.

    `default` is the name of the default config, which is listed first in its group.
    """
    found = [shipped_entry(name) for name in layers.shipped()]
    found.sort(key=lambda one: (one.name != default, "GPU" in one.needs and "core" not in one.needs, one.name))
    blocks = []
    for group, about in GROUPS.items():
        if members := [one for one in found if one.group == group]:
            heading = wrap(about, 4, f"{group.upper()} ")
            blocks.append("\n".join([heading, "", *(_entry(one, default) for one in members)]))
    return "\n\n".join(blocks) + "\n"


def _entry(one: Shipped, default: str) -> str:
    mark = "  (the default)" if one.name == default else ""
    return "\n".join([f"  {one.name}{mark}", wrap(one.about, 6), wrap(one.needs, 13, "      needs: ")])
