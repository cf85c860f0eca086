"""Command line: parse the arguments, load and check the config, and call the function of the config's task.

This module does not import torch, so that errors, --help, --list and --print-config are shown at once.
"""

import argparse
import logging
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from threedgen import __version__, config
from threedgen.config import fields, help, layers, plugins, registry
from threedgen.config.errors import (
    ConfigError,
    WeightsNotDownloaded,
    as_expected_error,
    did_you_mean,
    nearest,
    nearest_keys,
    short,
)
from threedgen.config.sections import RunConfig
from threedgen.run import folder as runs
from threedgen.run.interrupts import end_with_parent
from threedgen.run.options import is_rank_zero
from threedgen.run.text import log_to_stderr, say

logger = logging.getLogger(__name__)
HAVE_SHORT_FORMS = ("--config", "--help", "--quiet")
THREESTUDIO = {
    "--train": "runs train without a flag",
    "--test": "runs end with their images and files",
    "--validate": "runs end with their images and files",
    "--export": "runs export their mesh; again with --config export run=RUN",
    "--gpu": "the GPU is chosen by trainer.devices=1 and the environment variable CUDA_VISIBLE_DEVICES",
    "--gradio": "there is a page with --config studio",
}
"""Advice for users who pass flags of threestudio, a similar framework: dict from flag to text of the error message."""
LOG_LEVELS = ("debug", "info", "warning", "error")

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes. Subclasses of `config.errors.ExpectedError` define the exit codes of expected errors."""


@dataclass
class Command:
    """Parsed command line.

    Attributes:
        flags: dict from flag, such as "--config", to the value of the flag; "" for a flag without value.
        overrides: overrides of the config, as "key=value".
    """

    flags: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @property
    def config(self) -> str:
        return self.flags.get("--config", help.DEFAULT)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def parse(words: list[str]) -> Command:
    """Parse the arguments `words` of the command line into flags and overrides of config options.

    Raises ConfigError if an argument is unknown, or if flags contradict each other.
    """
    parser, names = _Parser(add_help=False, allow_abbrev=False), [flag.split()[0] for flag in help.FLAGS]
    for flag, name in zip(help.FLAGS, names, strict=True):
        _, _, value = flag.partition(" ")
        optional: Any = {"nargs": "?", "const": ""} if value.startswith("[") else {}
        how = optional if value else {"action": "store_const", "const": ""}
        short_form = [name[1:3]] if name in HAVE_SHORT_FORMS else []
        if name == plugins.FLAG:
            how = {"action": "append"}
        parser.add_argument(name, *short_form, dest=name, **how)
    found, rest = parser.parse_known_args(words)
    if files := getattr(found, plugins.FLAG):
        setattr(found, plugins.FLAG, ",".join(files))
    command = Command({name: value for name, value in vars(found).items() if value is not None})
    if "=" in command.flags.get("--help", ""):
        rest.insert(0, command.flags["--help"])
        command.flags["--help"] = ""
    for word in rest:
        if not word.startswith("-"):
            command.overrides.append(_override(word))
            continue
        flag = word.partition("=")[0]
        if flag in THREESTUDIO:
            raise ConfigError(f"{flag}: no flag of threedgen, remove it: {THREESTUDIO[flag]}")
        raise ConfigError(f"{short(word)}: unknown flag{_flag_hint(flag, names, command.config)}")
    if "--dry-run" in command.flags and "--resume" in command.flags:
        raise ConfigError("--dry-run: is for a new run; remove --resume")
    if "--config" in command.flags and "--resume" in command.flags:
        raise ConfigError("takes the config of the run; remove --config", "--resume")
    if (level := command.flags.get("--log-level", "info")) not in LOG_LEVELS:
        raise ConfigError(f"choose one of {', '.join(LOG_LEVELS)}", "--log-level", level)
    return command


def _flag_hint(flag: str, names: list[str], config_name: str) -> str:
    # a similar flag, the config or the option that the user means by an unknown flag
    key, known = flag.lstrip("-").replace("-", "_"), list[str]()
    with suppress(ConfigError):
        model, found = layers.load_layers(config_name)
        known = fields.paths(model, layers.merged(found))
    if key not in known and (guess := nearest(flag, names, cutoff=0.75)):
        return did_you_mean(guess)
    if flag.lstrip("-") in config.shipped():
        return did_you_mean(f"--config {flag.lstrip('-')}")
    options = " or ".join(f"{key}=..." for key in nearest_keys(key, known)) or "key=value"
    return f"; options of the config have no dashes: {options}"


def _override(word: str) -> str:
    if word.startswith("resume="):
        raise ConfigError(f"resume: is a flag. Use --resume FOLDER, the folder of the run (got {short(word[7:])})")
    if "=" in word:
        config.split_override(word)
        return word
    known = nearest(Path(word).stem, config.shipped(), cutoff=0.8)
    hint = f"; did you mean --config {known}?" if known else ', and text with spaces needs quotes: prompt="a blue dog"'
    raise ConfigError(f"command line: options are key=value{hint} (got {short(word)})")


def load_plugins(command: Command) -> None:
    """Import the plug-ins (the user's Python modules) of a command.

    They are those of the flag --plugin, and those that the config of the flag --config lists under `plugins`. A
    config.yaml in a run folder may come from someone else: its plug-ins are skipped with a warning.
    """
    if plugins.FLAG in command.flags:
        plugins.load(command.flags[plugins.FLAG])
    if "--config" not in command.flags:
        return
    for where, _, files in config.read_layers(config.find(command.config)):
        if files and Path(where).name == runs.CONFIG:
            logger.warning("%s: plugins: not imported, as this is the config of a run. Use --plugin", where)
            continue
        for file in files:
            plugins.load_file(Path(where).parent / file, f"{where}: plugins")


def answer(command: Command) -> str | None:
    """Return the text to print for --version, --help, --list or --print-config; None without these flags."""
    if "--version" in command.flags:
        return f"threedgen {__version__}"
    if "--help" in command.flags:
        return help.help_text(command.config, command.flags["--help"], command.overrides)
    if "--list" in command.flags:
        return help.list_text(help.DEFAULT)
    if "--print-config" in command.flags:
        place: str | Path = command.config
        if "--resume" in command.flags:
            place = (runs.run_folder(command.flags["--resume"]) / runs.CONFIG).resolve()
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # config files are read as UTF-8
        return config.dump(config.load(place, command.overrides), ascii_only=encoding.lower() != "utf-8")
    return None


def dry_run(checked: Any, name: str) -> int:
    """Print what a run would do, without starting it; return 0.

    `checked` is the config of the run, and `name` its name, which is the NAME in the run's folder outputs/NAME/... If
    the weights of a model are not downloaded, WeightsNotDownloaded is raised after the text is printed.
    """
    absent: WeightsNotDownloaded | None = None
    try:
        checked.check()
    except WeightsNotDownloaded as error:
        absent = error
    if isinstance(checked, RunConfig):
        checked = checked.model_copy(update={"out": str(runs.choose_folder(checked, name)[0])})
    own = checked.task if checked.task in registry.names("plan") else "any"
    say(registry.implementation("plan", own)(checked))
    if absent:
        raise absent
    return OK


def finishing(checked: Any, folder: Path) -> Any:
    """Return a copy of the config `checked` with `checkpoint.finish` = True, the effect of the flag --finish.

    The run then trains no further, and writes its results, such as video and mesh, from its last checkpoint.

    Raises ConfigError if the task of the config has no checkpoints, or if the run in `folder` has no checkpoint yet.
    """
    if (checkpoint := getattr(checked, "checkpoint", None)) is None:
        raise ConfigError("needs a task that trains and has checkpoints", "--finish", checked.task)
    if not any((folder / runs.CHECKPOINTS).glob("*.ckpt")):
        raise ConfigError(f"{folder} has no checkpoint yet. Continue the run without this flag", "--finish")
    return checked.model_copy(update={"checkpoint": checkpoint.model_copy(update={"finish": True})})


def run(command: Command) -> int:
    """Run the task of a command: load and check the config, choose the run folder, start. Return the exit code."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the current folder no longer exists ({error.strerror}); change to another one") from None
    resume: Path | None = None
    if "--resume" in command.flags:
        checked, resume = runs.reopen(command.flags["--resume"], command.overrides)
    else:
        checked = config.load(command.config, command.overrides)
    if "--view" in command.flags:
        if (view := getattr(checked, "view", None)) is None:
            raise ConfigError("the live view needs the task generate", "--view", checked.task)
        checked = checked.model_copy(update={"view": view.model_copy(update={"enabled": True})})
    name = resume.name if resume else runs.config_name(config.find(command.config))
    if "--finish" in command.flags:
        checked = finishing(checked, resume or runs.choose_folder(checked, name)[0])
    if "--dry-run" in command.flags:
        return dry_run(checked, name)
    checked.check()
    if resume is None and isinstance(checked, RunConfig):
        checked, resume = runs.open_run(checked, name)
    quiet = "--quiet" in command.flags
    place = checked.destination()
    if not quiet and place is not None and is_rank_zero():
        title = name if name == checked.task else f"{name}: {checked.task}"
        say(f"{title}{' resumes' if resume else ''} in {place}")
        say("loading libraries")  # torch and others take seconds
    result: Any = registry.implementation("task", checked.task)(checked, resume=resume, quiet=quiet)
    return result if isinstance(result, int) else OK


def main(words: list[str] | None = None) -> int:
    """Run the command line `words` (None: sys.argv[1:]) and return the exit code.

    For an `ExpectedError` (a mistake of the user, a full disk) only its message is printed, for any other exception the
    traceback.
    """
    try:
        command = parse(sys.argv[1:] if words is None else words)
        end_with_parent()
        with log_to_stderr(command.flags.get("--log-level", "info")):
            load_plugins(command)
            text = answer(command)
            if text is None:
                return run(command)
        say(text)
        return OK
    except KeyboardInterrupt:
        say("stopped by Ctrl-C", sys.stderr)
        return INTERRUPTED
    except Exception as error:
        shown = as_expected_error(error)
        say(traceback.format_exc() if shown is None else str(shown), sys.stderr)
        return FAILED if shown is None else shown.exit_code
