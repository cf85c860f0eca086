import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.errors import refused
from tests.support.task_server import tiny_generate
from threedgen import cli, config
from threedgen.config import plugins, registry
from threedgen.run import folder as runs
from threedgen.run.metrics import read_summary
from threedgen.run.options import WorkersConfig
from threedgen.run.worker_pool import run_jobs

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "plugins" / "antithetic.py"
MARKER = "open(__file__ + '.imported', 'w').close()\n"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No components of other tests."""
    monkeypatch.chdir(tmp_path)
    own = {
        kind: {name: entry for name, entry in named.items() if entry.implementation.startswith("threedgen.")}
        for kind, named in registry.TABLE.items()
    }
    monkeypatch.setattr(registry, "TABLE", own)
    yield
    forget()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLE, tmp_path))


def forget() -> None:
    for name in plugins.LOADED:
        sys.modules.pop(name)
    plugins.LOADED.clear()
    registry.TABLE["distillation"].pop("antithetic", None)


def test_documented_kinds_exist() -> None:
    table = (DOCS / "plugins.md").read_text(encoding="utf-8").partition("## Kinds")[2].partition("\n\n`")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    kinds = re.findall(r"`([\w-]+)`", " ".join(cells))
    assert len(kinds) > 15 and set(kinds) <= registry.TABLE.keys()


def test_run_uses_and_resumes_with_plugin(plugin: Path, tmp_path: Path, capsys, caplog) -> None:
    tiny = tiny_generate(tmp_path / "tiny")
    Path("mine.yaml").write_text(
        f"base: {tiny}\nplugins: [antithetic.py]\ndistillation: {{name: antithetic, guidance_scale: 9}}\n"
    )
    assert cli.main(["--plugin", "antithetic.py", "--help", "distillation", "distillation.name=antithetic"]) == 0
    assert "distillation.pairs = 1" in capsys.readouterr().out
    forget()
    words = ["-q", "export.enabled=false", "distillation.pairs=2", "out=run", "trainer.max_steps=3"]
    assert cli.main(["--config", "mine.yaml", *words]) == 0
    run = tmp_path / "run"
    assert read_summary(run)["status"] == "finished" and "pairs: 2" in (run / "config.yaml").read_text()
    ((path, record),) = read_summary(run)["plugins"].items()
    assert path == str(plugin) and len(record["sha256"]) == 64 and record["commit"] is None
    forget()
    (run / "summary.json").unlink()  # a stopped run has none
    plugin.write_text(plugin.read_text() + "# changed\n")
    assert cli.main(["-q", "--plugin", "antithetic.py", "--resume", "run", "trainer.max_steps=4"]) == 0
    assert read_summary(run)["steps"] == 4
    assert [str(plugin) in one.getMessage() for one in caplog.records].count(True) == 1
    forget()
    assert cli.main(["-q", "--resume", "run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "distillation.name: " in error and "'antithetic'" in error and "sds, reconstruction, vsd, ism" in error


def test_plugins_of_a_run_folder_are_not_imported(tmp_path: Path) -> None:
    run, code = tmp_path / "run", tmp_path / "code.py"
    code.write_text(MARKER)
    run.mkdir()
    runs.write_config(run, config.load(tiny_generate(tmp_path / "tiny"), ["prompt=a dog"]))
    file = run / runs.CONFIG
    file.write_text(file.read_text() + f"plugins: [{code}]\n")
    Path("gallery.txt").write_text("a dog\n")
    config.load(file)
    for words in (
        ["--resume", "run", "--print-config"], ["--resume", "run", "--help"], ["--config", "run/config.yaml", "--list"],
        ["--config", "export", "run=run"], ["--config", "gallery", "runs=."], ["--config", "report", "run=run"],
        ["--config", "batch", "prompts=gallery.txt", f"configs=[{file}]", "--dry-run"],
    ):  # fmt: skip
        cli.main(words)
    assert not Path(f"{code}.imported").exists()
    Path("mine.yaml").write_text(f"base: mvdream-toybox\nplugins: [{code.name}]\n")
    config.load("mine.yaml")
    assert not Path(f"{code}.imported").exists(), "nor by Python"
    assert cli.main(["--config", "mine.yaml", "--print-config"]) == 0 and Path(f"{code}.imported").exists()


def test_files_of_one_name_do_not_clash(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        code = (
            "from threedgen.config import registry\nregistry.register('prior', 'NAME', __name__ + ':x', '')\nx = 'NAME'"
        )
        (tmp_path / name / "mine.py").write_text(code.replace("NAME", name))
    plugins.load("a/mine.py, b/mine.py")
    assert [registry.implementation("prior", name) for name in ("a", "b")] == ["a", "b"]
    loaded = dict(plugins.LOADED)
    words = ["--plugin", "a.py", "--plugin", "b.py,c.py", "--list"]
    assert cli.parse(words).flags == {"--plugin": "a.py,b.py,c.py", "--list": ""}, "repeated flags add up"
    flag, names = plugins.command_words()
    forget()
    assert plugins.command_words() == []
    plugins.load(cli.parse([flag, names]).flags[plugins.FLAG])  # in a process with this command
    assert plugins.LOADED == loaded
    forget()
    plugins.load_all(loaded)  # in a worker process
    assert plugins.LOADED == loaded and registry.implementation("prior", "a") == "a"


def test_worker_process_imports_plugins(tmp_path: Path) -> None:
    code = "import os\n\nclass Job(str):\n    pass\n\ndef work(job):\n    return os.getpid(), job\n"
    (tmp_path / "mine.py").write_text(code)
    plugins.load("mine.py")
    (module,) = (sys.modules[name] for name in plugins.LOADED)
    results = list[Any]()
    options = WorkersConfig(task="mine", engine="processes")

    def done(job: Any, result: Any) -> None:
        results.append(result)

    assert run_jobs([module.Job("a")], module.work, done, done, options) == 0
    ((process, job),) = results
    assert process != os.getpid() and type(job) is module.Job


def test_unused_loss_terms_leave_the_config_unchanged(tmp_path: Path) -> None:
    tiny = tiny_generate(tmp_path / "tiny")
    before = config.plain(config.load(tiny))
    plugins.load(str(DOCS / "plugins" / "blobs.py"))
    registry.register("regulariser", "mine", f"{__name__}:mine")
    assert config.plain(config.load(tiny)) == before
    changed = config.load(tiny, ["loss.mine=2"])
    assert config.plain(changed)["loss"] == before["loss"] | {"mine": 2}
    assert pickle.loads(pickle.dumps(changed.loss)).model_dump() == changed.loss.model_dump()


def test_commit_of_the_folder_is_recorded(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "empty"], check=True)
    (tmp_path / "mine.py").write_text("x = 1")
    plugins.load("mine.py")
    (record,) = plugins.identify().values()
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert record["commit"] == head.strip()


def test_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `space` is a namespace package: it can be imported, but has no code."""
    (tmp_path / "space").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine.py", "space", "", "no_module", "./no"):
        with refused("--plugin", name):
            plugins.load(name)
    assert cli.main(["--plugin", "mine.py", "--list"]) == 2
    for text, value in (("[none.py]", "none.py"), ("none.py", "'none.py'")):
        Path("mine.yaml").write_text(f"base: mvdream-toybox\nplugins: {text}\n")
        with refused(None, "plugins", value):
            cli.load_plugins(cli.parse(["--config", "mine.yaml"]))


def test_errors_of_the_file_show_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("import torhc")
    assert cli.main(["--plugin", "mine.py", "--list"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and 'mine.py", line 1' in error
    assert error.splitlines()[-1].startswith("ModuleNotFoundError: ")
