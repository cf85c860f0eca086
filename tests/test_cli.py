"""The command line: quick answers, one clear line for a mistake, and the exit codes."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy_task
from tests.support.toy_task import YAML, ToyConfig, toy  # noqa: F401
from threedgen import cli, config
from threedgen.config import fields, layers, registry
from threedgen.config.errors import FileError, WorkerLost
from threedgen.config.sections import TrainerConfig
from threedgen.run import folder as runs
from threedgen.run.text import log_to_stderr

ROOT = Path(__file__).parents[1]


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture
def shipped(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    root = toy.parent / "shipped"
    root.mkdir()
    (root / "mvdream-toybox.yaml").write_text(YAML)
    monkeypatch.setattr(layers, "folder", lambda name: root)
    return root


def test_parse_separates_flags_and_overrides() -> None:
    command = cli.parse(["--config", "a", "prompt=x --y", "-q", "seed=3", "--resume=b"][:-1])
    assert command.flags == {"--config": "a", "--quiet": ""} and command.overrides == ["prompt=x --y", "seed=3"]
    assert cli.parse(["--config=a=b"]).config == "a=b"
    assert cli.parse(["--help", "trainer"]).flags == {"--help": "trainer"}
    assert cli.parse(["--help", "seed=1"]).flags == {"--help": ""}
    assert cli.parse([]).config == "mvdream-toybox"
    assert cli.parse(["prompt=-5 = --x"]).overrides == ["prompt=-5 = --x"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--confg", "a"], ["--confg", "unknown flag", "did you mean '--config'"]),
        (["--config"], ["--config"]),
        (["--quiet=yes"], ["--quiet", "'yes'"]),
        (["prompt=a", "blue", "dog"], ["key=value", 'prompt="a blue dog"', "'blue'"]),
        (["--config", "a", "--resume", "b"], ["--resume"]),
        (["\x1b[31m"], ["'\\x1b[31m'"]),
    ],
)
def test_wrong_words_are_one_line(refuses: Any, words: list[str], parts: list[str]) -> None:
    refuses(words, *parts)


def option_keys(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if re.match(r"  [a-z]", line) and " = " in line]


def test_help_all_lists_every_option(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "--help", "all")
    places = fields.walk(ToyConfig, {"prior": {"name": "big"}})
    leaves = [".".join(place.path) for place in places if place.section is None]
    assert code == 0 and option_keys(out) == [key for key in leaves if key not in fields.INTERNAL]
    assert "  prior.weights = here " in out, "from the config, not the default of the model"


def test_help_lists_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in config.shipped():
        code, out, _ = ask(capsys, "--help", "--config", name)
        usage, _, rest = out.partition("Common options of ")
        assert code == 0 and "--config NAME_OR_PATH" in usage and "--help all" in rest
        keys = option_keys(rest)
        assert 0 < len(keys) < 40 and not set(keys) & set(fields.INTERNAL), name
        model = registry.config_model("task", config.task_of(name))
        assert set(model.common) <= set(keys) or not model.common, name


def test_help_section_lists_its_options(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "--help", "trainer")
    keys = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert code == 0 and keys == [f"trainer.{name}" for name in TrainerConfig.model_fields]
    code, _, err = ask(capsys, "--help", "trainr")
    assert code == 2 and "did you mean 'trainer'" in err
    assert "prior.weights" in ask(capsys, "--help", "prior.weights")[1]


def test_list_has_every_config_the_default_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "--list")
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert code == 0 and names[0] == "mvdream-toybox" and sorted(names) == config.shipped()


def test_print_config_is_complete(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "--print-config", "prompt=4k: best #1", "trainer.max_steps=3")
    Path("printed.yaml").write_text(out)
    again = config.load("printed.yaml")
    assert code == 0 and again.prompt == "4k: best #1" and again.trainer.max_steps == 3
    assert not Path("outputs").exists()


def test_run_prints_folder_and_resumes(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("outputs") / "mvdream-toybox" / runs.slug("a [red]dog[/red] $HOME")
    code, out, err = ask(capsys, "prompt=a [red]dog[/red] $HOME")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"mvdream-toybox: toy in {folder}"
    assert runs.config_name(folder / "config.yaml") == folder.name
    assert "prompt='a [red]dog[/red] $HOME' resume=False" in out
    assert config.load(folder / "config.yaml").prompt == "a [red]dog[/red] $HOME"
    code, out, _ = ask(capsys, "prompt=a [red]dog[/red] $HOME")
    assert str(folder) in out and "resume=True" in out
    code, out, _ = ask(capsys, "--resume", str(folder), "trainer.max_steps=3", "--quiet")
    assert code == 0 and len(out.splitlines()) == 1 and "resume=True" in out
    code, _, err = ask(capsys, "--resume", str(folder), "seed=3")
    assert code == 2 and "seed: 0 -> 3" in err
    before = (folder / "config.yaml").read_bytes()
    code, out, _ = ask(capsys, "--print-config", "--resume", str(folder), "seed=4")
    assert "seed: 4" in out and (folder / "config.yaml").read_bytes() == before
    code, _, err = ask(capsys, "--resume", "outputs/nothing")
    assert code == 2 and "--resume" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileError("a.glb is missing"), 2),
        (OSError(errno.ENOSPC, "no space", "a.glb"), 3),
        (MemoryError("30 GiB"), 4),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 4),
        (WorkerLost("5 workers died"), 5),
        (RuntimeError("it broke"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_each_expected_error_has_an_exit_code(
    shipped: Path, capsys, monkeypatch, error: BaseException, code: int
) -> None:
    def run(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(toy_task, "run", run)
    exit_code, _, err = ask(capsys, "prompt=a cat")
    assert exit_code == code and ("Traceback" in err) == (code == 1)
    assert code == 1 or err.count("\n") == 1


@pytest.mark.parametrize(("level", "shown"), [("info", 2), ("warning", 1), ("error", 0)])
def test_log_level_selects_the_records_on_stderr(capsys: pytest.CaptureFixture[str], level: str, shown: int) -> None:
    logger = logging.getLogger("threedgen.somewhere")
    with log_to_stderr(level):
        logger.info("one")
        logger.warning("two")
    logger.warning("three")
    assert capsys.readouterr().err.splitlines() == ["one", "warning: two"][2 - shown :]
    assert ask(capsys, "--version", "--log-level", level)[0] == 0
    assert ask(capsys, "--version", "--log-level", "loud")[0] == 2


RUNNER = (
    "import sys; from tests.support import toy_task; toy_task.register(); from threedgen.cli import main; "
    "sys.exit(main())"
)


def process(folder: Path, *words: str, stdout: Any = subprocess.PIPE) -> Any:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", RUNNER, *words]
    return subprocess.run(command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_printed_config_is_the_same_in_any_encoding(toy: Path) -> None:  # noqa: F811
    prompt = "é красный 🐶"
    done = process(toy.parent, "--config", "toy.yaml", "--print-config", f"prompt={prompt}")
    toy.write_text(done.stdout)
    assert config.load(toy).prompt == prompt and done.stdout.isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_full_disk_for_stdout_is_no_error(toy: Path) -> None:  # noqa: F811
    with open("/dev/full", "w") as stdout:
        done = process(toy.parent, "--config", "toy.yaml", "out=here", stdout=stdout)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "task: toy" in (toy.parent / "here" / "config.yaml").read_text()


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_during_import_prints_no_traceback(tmp_path: Path) -> None:
    late = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    (tmp_path / "pydantic.py").write_text(late)
    for start in ([str(ROOT / "launch.py")], ["-m", "threedgen"]):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not
        command: Any = {"env": environment, "preexec_fn": listening, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *start, "--help"], **command)
        assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


def test_missing_package_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import no_such_package")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "launch.py"), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "no_such_package" in done.stderr and sys.executable in done.stderr
