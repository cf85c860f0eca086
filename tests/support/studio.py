"""A studio whose runs are made in no time: the prompt says how each of them ends."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.example_run import asset_glb, example
from tests.support.waiting import when
from threedgen.studio import state
from threedgen.studio.job_queue import Queue
from threedgen.studio.jobs import Job
from threedgen.studio.options import StudioConfig
from threedgen.studio.server import Server
from threedgen.viewer.report import write_report

PATIENCE = 120.0  # seconds
TOKEN = "the-token-of-the-tests"
LINE = "distilling at 64 px: 1/4, 2 s/step, 6 s left, loss 12.5"
FAILURE = "prior.weights: there is no such file"
SCRIPT = f"""
import os, pathlib, shutil, signal, sys, time

source, folder, prompt, *flags = sys.argv[1:]
say = lambda text: print(text, file=sys.stderr, flush=True)
if "stubborn" in prompt:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
checkpoint = pathlib.Path(folder, "checkpoints", "last.ckpt")
checkpoint.parent.mkdir(parents=True, exist_ok=True)
say("a warning of a library")
checkpoint.touch()
say({LINE!r})
while "waits" in prompt and not flags and not os.path.exists(folder + ".go"):
    time.sleep(0.05)
if "fails" in prompt:
    say({FAILURE!r})
    sys.exit(2)
if "dies" in prompt:
    os.kill(os.getpid(), 9)
shutil.copytree(source, folder, dirs_exist_ok=True)
"""


def finished_run(folder: Path, prompt: str = "a blue dog") -> Path:
    run = example(folder, prompt=prompt)
    (run / "asset").mkdir()
    (run / "asset" / "square.glb").write_bytes(asset_glb((0, 0, 1)))
    (run / "asset" / "asset.json").write_text('{"files": {"square.glb": 1}}')
    write_report(run)
    return run


@contextmanager
def studio(folder: Path, monkeypatch: pytest.MonkeyPatch, config: StudioConfig | None = None) -> Iterator[Client]:
    """An open studio with its runs in `folder`/runs; they are fakes unless a `config` makes real ones.

    Called again with the same folder, it is the studio after a restart.
    """
    root = folder / "runs"
    root.mkdir(exist_ok=True)
    if config is None:
        source = folder / "source"
        if not source.exists():
            finished_run(source)

        def fake(config: StudioConfig, root: Path, prompt: str, seed: int, *more: object) -> Job:
            name = f"{prompt.replace(' ', '-')}-{seed}"
            return Job(prompt, seed, name, [sys.executable, "-c", SCRIPT, str(source), str(root / name), prompt])

        monkeypatch.setattr(state, "make_job", fake)
    queue = Queue(root)
    with Server(config or StudioConfig(task="studio", port=0), root, queue, TOKEN) as server:
        try:
            yield Client(f"http://127.0.0.1:{server.socket.getsockname()[1]}/{TOKEN}/", root, queue, server.app)
        finally:
            queue.close()


class Client:
    """A page without a browser."""

    def __init__(self, url: str, root: Any, queue: Any, app: Any) -> None:
        self.url, self.root, self.queue, self.app = url, root, queue, app

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> http.client.HTTPResponse:
        """The answer to a request below the token, or to a whole path; a POST if there is a body."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=PATIENCE)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        where = path if path.startswith("/") else place.path + path
        headers = {"Content-Type": "application/json"} | headers
        connection.request(method or ("GET" if data is None else "POST"), where, data, headers)
        return connection.getresponse()

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The answer below /api/v1/, parsed; None if it is empty."""
        data = self.ask(f"api/v1/{path}", body, method).read()
        return json.loads(data) if data else None

    def submit(self, prompt: str, **more: Any) -> int:
        number = self.api("jobs", {"prompt": prompt, **more})["number"]
        return int(number)

    def progressed(self, number: int = 0) -> None:
        """Wait until the job, the last one without a number, has shown progress."""
        when(lambda: self.queue.jobs()[number - 1].progress)

    def states(self) -> list[str]:
        return [job.state for job in self.queue.jobs()]

    def until(self, states: list[str]) -> None:
        when(lambda: self.states() == states, str(states))
