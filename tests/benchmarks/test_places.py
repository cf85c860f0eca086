"""Places of benchmarks.places, with another script instead of launch.py."""

from pathlib import Path

import torch

from benchmarks import places
from benchmarks.places import ORDINARY, PLACES
from tests.support.marks import unix
from threedgen.train.checkpoint_file import LAST

pytestmark = unix
RUN = """
import pathlib, resource, shutil
shutil.copytree(EXAMPLE, "run")
pathlib.Path("run/a.png").write_bytes(b"%d" % resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


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
