"""Places of benchmarks.places, with a script that prints where it runs instead of launch.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import places
from benchmarks.places import MOVED, NAME, ORDINARY, PLACES, ROOT
from tests.support.marks import unix
from threedgen.train.checkpoint_file import LAST

pytestmark = unix
FACTS = """
import json, os, pathlib, resource, shutil, sys, time
facts = {
    "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
    "home": os.path.expanduser("~"),
    "free": shutil.disk_usage(os.environ["TMPDIR"]).free if os.path.isdir(os.environ.get("TMPDIR", "")) else -1,
    "shm": os.path.exists("/dev/shm"),
    "random": len(open("/dev/urandom", "rb").read(4)),
    "read-only": bool(os.statvfs(ROOT).f_flag & os.ST_RDONLY),
    "encoding": sys.getfilesystemencoding(),
    "words": sys.argv[1:],
}
checkpoint = pathlib.Path("run/checkpoints/last.ckpt")
if sys.argv[1] == "--resume":
    facts["later"] = os.stat(os.path.join(sys.argv[2], "checkpoints/last.ckpt")).st_mtime - time.time()
elif "WAIT":
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    time.sleep(60)
print(json.dumps(facts))
sys.exit(7)
"""
RUN = """
import pathlib, resource, shutil
shutil.copytree(EXAMPLE, "run")
pathlib.Path("run/a.png").write_bytes(b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def facts(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the facts that the script prints in the place `name`. Skips the test if the machine has no such place."""
    script = FACTS.replace("ROOT", repr(str(ROOT))).replace("WAIT", "wait" * (name == MOVED))
    (folder / "launch.py").write_text(script)
    monkeypatch.setattr(places, "LAUNCH", str(folder / "launch.py"))
    cells, output = places.measure(name, folder / "work", folder)
    if cells[1].startswith("skipped"):
        pytest.skip(cells[1])
    assert (cells[0], cells[3]) == ("7", "-"), output
    return json.loads(output)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("64 file descriptors", {"descriptors": 64}),
        ("no HOME, user without a home", {"home": "~", "read-only": False}),
        ("TMPDIR full", {"free": 0}),
        ("no /dev/shm", {"shm": False, "random": 4}),
        ("2 GB of address space", {"memory": 2 << 30}),
        ("1 GB of address space", {"memory": 1 << 30}),
        ("read-only installation, user without a home", {"home": "~", "read-only": True}),
        ("ASCII locale, accent in the prompt", {"encoding": "ascii"}),
    ],
)
def test_place_is_what_its_name_says(name: str, expected: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    found = facts(name, tmp_path, monkeypatch)
    assert {key: found[key] for key in expected} == expected


def test_killed_run_is_moved_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(MOVED, tmp_path, monkeypatch)
    assert found["words"][0] == "--resume" and Path(found["words"][1]).parent.name == "else where"
    assert 3500 < found["later"] <= 3600 and (found["descriptors"], found["home"]) == (64, "~")
    assert (tmp_path / "work" / "else where" / NAME / "checkpoints").is_dir()


def test_table_compares_results_and_finds_tracebacks(tmp_path: Path, monkeypatch, capsys) -> None:
    script, example = tmp_path / "launch.py", tmp_path / "example"
    (example / "checkpoints").mkdir(parents=True)
    keys = ("global_step", "loops", "optimizer_states", "lr_schedulers")
    torch.save({"state_dict": {"a": torch.ones(1)}} | dict.fromkeys(keys, 0), example / "checkpoints" / LAST)
    monkeypatch.setattr(places, "LAUNCH", str(script))
    monkeypatch.setattr(places, "PLACES", {name: PLACES[name] for name in (ORDINARY, "64 file descriptors")})
    script.write_text(RUN.replace("EXAMPLE", repr(str(example))))
    assert places.main([]) == 1 and capsys.readouterr().out.splitlines()[3].endswith("no |")
    script.write_text("raise KeyError('a|b')")
    assert places.main([]) == 1 and "Traceback" in capsys.readouterr().err
