"""Words behind the command -> one checked config -> the function of its task.

Imports no torch: mistakes, --help, --list and --print-config answer at once, and the first line of a run is
printed before the long imports begin.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threedgen import __version__, config
from threedgen.config import help, listing, plugins, registry
from threedgen.config.errors import AbsentWeights, ConfigError, did_you_mean, nearest, short
from threedgen.config.sections import RunConfig
from threedgen.run import folder as runs
from threedgen.run.text import clean_logs, say, steady_streams

DEFAULT_CONFIG = "mvdream-toybox"
FLAGS = f"--config --dry-run --help --list {plugins.FLAG} --print-config --quiet --resume --version --view".split()
SHORT_FLAGS = {"-c": "--config", "-h": "--help", "-q": "--quiet"}
WITH_VALUE = {
    "--config": DEFAULT_CONFIG,
    plugins.FLAG: "my_loss.py",
    "--resume": "outputs/mvdream-toybox/a-blue-dog-0123abcd",
}
"""Flag: an example of its value."""
DEBUG = "THREEDGEN_DEBUG"

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


@dataclass
class Command:
    """The words of a command line, sorted."""

    flags: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @property
    def config(self) -> str:
        return self.flags.get("--config", DEFAULT_CONFIG)


def parse(words: list[str]) -> Command:
    """Sort the words into flags and `key=value` overrides. Raises ConfigError."""
    command, rest = Command(), list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            command.overrides.append(_override(word))
            continue
        flag, equals, value = word.partition("=")
        flag = SHORT_FLAGS.get(flag, flag)
        if flag not in FLAGS:
            guess = nearest(flag, FLAGS)
            hint = did_you_mean(guess) if guess else "; options of the config have no dashes: key=value"
            raise ConfigError(f"{short(flag)}: unknown flag{hint}")
        takes_section = flag == "--help" and rest and not rest[0].startswith("-") and "=" not in rest[0]
        if flag in WITH_VALUE or takes_section:
            if not equals and (not rest or rest[0].startswith("--")):
                raise ConfigError(f"{flag}: needs a value, such as {flag} {WITH_VALUE[flag]}")
            value = value if equals else rest.pop(0)
        elif equals and flag != "--help":
            raise ConfigError(f"{flag}: takes no value (got {short(value)})")
        command.flags[flag] = value
    if "--dry-run" in command.flags and "--resume" in command.flags:
        raise ConfigError("--dry-run: says what a new run would do, so --resume cannot be given with it")
    if "--config" in command.flags and "--resume" in command.flags:
        raise ConfigError("takes the config of the run, so --config cannot be given with it", "--resume")
    return command


def _override(word: str) -> str:
    if "=" in word:
        config.split_override(word)
        return word
    known = nearest(Path(word).stem, config.shipped(), cutoff=0.8)
    hint = f"; did you mean --config {known}?" if known else ', and text with spaces is quoted: prompt="a blue dog"'
    raise ConfigError(f"command line: an option is written key=value{hint} (got {short(word)})")


def answer(command: Command) -> str | None:
    """The text of a question that needs no run (--help, --list, ...); None if it is not one."""
    if "--version" in command.flags:
        return f"threedgen {__version__}"
    if "--help" in command.flags:
        return help.help_text(command.config, command.flags["--help"], command.overrides)
    if "--list" in command.flags:
        return listing.list_text(DEFAULT_CONFIG)
    if "--print-config" in command.flags:
        place: str | Path = command.config
        if "--resume" in command.flags:
            place = (runs.run_folder(command.flags["--resume"]) / runs.CONFIG).resolve()
        return config.dump(config.load(place, command.overrides))
    return None


def dry_run(checked: Any, name: str) -> int:
    """Say what would run. That weights are not here stops it at the end only: what the run would be is known.

    name: of the config, for the folder that a run gets.
    """
    lacking: AbsentWeights | None = None
    try:
        checked.check()
    except AbsentWeights as error:
        lacking = error
    if isinstance(checked, RunConfig):
        checked = checked.model_copy(update={"out": str(runs.choose(checked, name)[0])})
    own = checked.task if checked.task in registry.names("plan") else "any"
    say(registry.implementation("plan", own)(checked))
    if lacking:
        raise lacking
    return OK


def run(command: Command) -> int:
    """Check the config and what it needs, choose the folder, say so, and only then import and run the task."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the folder that this was started in is gone ({error.strerror}): go to another one"
        ) from None
    resume: Path | None = None
    if "--resume" in command.flags:
        checked, resume = runs.reopen(command.flags["--resume"], command.overrides)
    else:
        checked = config.load(command.config, command.overrides)
    if "--view" in command.flags:
        if (view := getattr(checked, "view", None)) is None:
            raise ConfigError("a run of the task generate can be watched, this one cannot", "--view", checked.task)
        checked = checked.model_copy(update={"view": view.model_copy(update={"enabled": True})})
    name = resume.name if resume else runs.config_name(config.find(command.config))
    if "--dry-run" in command.flags:
        return dry_run(checked, name)
    checked.check()
    if resume is None and isinstance(checked, RunConfig):
        checked, resume = runs.begin(checked, name)
    quiet = "--quiet" in command.flags
    place = checked.destination()
    if not quiet and place is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        title = name if name == checked.task else f"{name}: {checked.task}"
        say(f"{title}{' goes on' if resume else ''} in {place}")
        say("loading the libraries")  # torch and the rest: seconds, and more than that on a busy machine
    result: Any = registry.implementation("task", checked.task)(checked, resume=resume, quiet=quiet)
    return result if isinstance(result, int) else OK


def main(words: list[str] | None = None) -> int:
    """The command line; returns 0, 2 for a mistake of the user, 130 for Ctrl-C, 1 for a fault."""
    steady_streams()
    clean_logs()
    try:
        command = parse(sys.argv[1:] if words is None else words)
        if plugins.FLAG in command.flags:
            plugins.load(command.flags[plugins.FLAG])
        text = answer(command)
        if text is None:
            return run(command)
        say(text)
        return OK
    except ConfigError as error:
        say(str(error), sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        say("stopped by Ctrl-C", sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            raise
        say(f"stopped by {type(error).__name__}: {error}\n(set {DEBUG}=1 to see where it happened)", sys.stderr)
        return FAILED
