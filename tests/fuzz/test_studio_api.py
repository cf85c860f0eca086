"""The studio's API under schemathesis: any request gets an answer that openapi.json describes, and never a 5xx.

Needs the command `schemathesis` of a virtual environment of its own, for example

    python -m venv other && other/bin/pip install schemathesis
    PATH=$PATH:other/bin FUZZ_TIMES=5 FUZZ_SEED=7 pytest -s -m slow tests/fuzz/test_studio_api.py
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.studio import SCRIPT, TOKEN, finished_run, studio
from threedgen.export.options import AssetConfig
from threedgen.studio import api, state
from threedgen.studio.jobs import Job, export_job, make_job
from threedgen.studio.options import StudioConfig

pytestmark = pytest.mark.slow
EXAMPLES, SEED = round(8 * float(os.environ.get("FUZZ_TIMES", 1))), os.environ.get("FUZZ_SEED", "0")
CONFIG, HOOKS = (Path(__file__).with_name(f"studio_api.{kind}") for kind in ("toml", "py"))


class OneEvent:
    """Flag in place of `Studio.closing` that ends each event stream after one event: the fuzzer reads to the end."""

    calls = 0

    def is_set(self) -> bool:
        self.calls += 1
        return self.calls % 2 == 0

    def set(self) -> None:
        pass


def test_any_request_gets_a_documented_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    command = shutil.which("schemathesis") or pytest.skip("no schemathesis here")
    source = tmp_path / "source"

    def job(config: StudioConfig, root: Path, prompt: str, *more: Any) -> Job:
        made = make_job(config, root, prompt, *more)
        made.command = [sys.executable, "-S", "-c", SCRIPT, str(source), str(root / made.name), prompt]
        return made

    def export(root: Path, name: str, options: AssetConfig) -> Job:
        made = export_job(root, name, options)
        made.command = [sys.executable, "-S", "-c", ""]
        return made

    with studio(tmp_path, monkeypatch) as client:
        monkeypatch.setattr(state, "make_job", job)
        monkeypatch.setattr(api, "export_job", export)
        client.app.state.studio.closing = OneEvent()
        for name in ("one", "deep/two"):
            finished_run(client.root / name)
        server = client.url.removesuffix(f"/{TOKEN}/")
        options: Mapping[str, object] = {
            "--config-file": CONFIG, "run": f"{server}/api/v1/openapi.json", "--url": server,
            "--header": f"Authorization: Bearer {TOKEN}", "--checks": "all",
            "--suppress-health-check": "filter_too_much",
            "--max-examples": EXAMPLES, "--seed": SEED,
        }  # fmt: skip
        words = [str(word) for item in options.items() for word in item]
        words += ["--continue-on-failure", "--no-color", "--generation-database", "none"]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
        done = subprocess.run([command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    with capsys.disabled():
        print("\n" + "\n".join(re.findall(r".*(?:generated|Scenarios|Links:|responses:).*", done.stdout)))
    assert done.returncode == 0, done.stdout + done.stderr
