"""A studio whose runs are made in no time: the prompt says how each of them ends."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.example_run import asset_glb, example
from tests.support.waiting import when
from threedgen.studio import server as serving
from threedgen.studio.jobs import Job, Queue
from threedgen.studio.options import StudioConfig
from threedgen.viewer.report import write_report

PATIENCE = 120.0
"""Seconds."""
LINE = "distilling at 64 px: 1/4, 2 s/step, 6 s left, loss 12.5"
FAILURE = "prior.weights: there is no such file"
SCRIPT = f"""
import os, shutil, signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start what is in its background deaf to it
source, folder, prompt = sys.argv[1:]
say = lambda text: print(text, file=sys.stderr, flush=True)
say("a warning of a library")
say({LINE!r})
try:
    while "waits" in prompt and not os.path.exists(folder + ".go"):
        time.sleep(0.05)
except KeyboardInterrupt:
    if "stubborn" in prompt:
        say("one more: 2/4")
        time.sleep(600)
    sys.exit(130)
if "fails" in prompt:
    say({FAILURE!r})
    sys.exit(2)
if "dies" in prompt:
    os.kill(os.getpid(), 9)
shutil.copytree(source, folder, dirs_exist_ok=True)
"""


def finished_run(folder: Path, prompt: str = "a blue dog") -> Path:
    """A run with an asset and its page."""
    run = example(folder, prompt=prompt)
    (run / "asset").mkdir()
    (run / "asset" / "square.glb").write_bytes(asset_glb((0, 0, 1)))
    (run / "asset" / "asset.json").write_text('{"files": {"square.glb": 1}}')
    write_report(run)
    return run


@contextmanager
def studio(folder: Path, monkeypatch: pytest.MonkeyPatch, config: StudioConfig | None = None) -> Iterator[Client]:
    """An open studio with its runs in `folder`/runs; they are fakes unless a `config` makes real ones."""
    root = folder / "runs"
    root.mkdir()
    if config is None:
        source = finished_run(folder / "source")

        def fake(config: StudioConfig, root: Path, prompt: str, seed: int) -> Job:
            name = f"{prompt.replace(' ', '-')}-{seed}"
            return Job(prompt, seed, name, [sys.executable, "-c", SCRIPT, str(source), str(root / name), prompt])

        monkeypatch.setattr(serving, "make_job", fake)
    queue = Queue()
    server = serving.Server(config or StudioConfig(task="studio", port=0), root, queue, "the-key")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Client(server.url, root, queue)
    finally:
        for job in queue.jobs():
            queue.drop(job.number)
            queue.drop(job.number)
        queue.close()
        server.shutdown()
        server.server_close()


class Client:
    """A page without a browser."""

    def __init__(self, url: str, root: Path, queue: Queue) -> None:
        self.url, self.root, self.queue = url, root, queue

    def ask(self, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """The answer to a request below the key, or to a whole path; a POST if there is a body."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=PATIENCE)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        where = path if path.startswith("/") else place.path + path
        connection.request("GET" if data is None else "POST", where, data, headers)
        return connection.getresponse()

    def json(self, path: str, body: Any = None) -> Any:
        return json.loads(self.ask(path, body).read())

    def states(self) -> list[str]:
        return [job.state for job in self.queue.jobs()]

    def until(self, states: list[str]) -> None:
        when(lambda: self.states() == states, str(states))
