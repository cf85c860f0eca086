"""The task "studio": serves the page until Ctrl-C; the run that is going on then is stopped, and can go on later."""

from __future__ import annotations

import secrets
import threading
import time
import webbrowser
from pathlib import Path

from threedgen.run.disk import writing
from threedgen.run.folder import user_path
from threedgen.run.interrupts import Interrupts
from threedgen.run.text import say

from .jobs import LIVE, Queue
from .options import StudioConfig
from .server import Server

POLL = 0.2
"""Seconds until Ctrl-C is noticed at the latest."""


def run(config: StudioConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """The task; prints the address of the page."""
    root = user_path(config.out, "out").absolute()
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with Interrupts() as interrupts:
        interrupts.obey_sigterm()
        queue = Queue()
        server = Server(config, root, queue, secrets.token_urlsafe(16))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        say(f"studio: {server.url}" if quiet else f"studio: {server.url} (Ctrl-C ends it; runs are in {config.out})")
        if config.open_browser:
            webbrowser.open(server.url)
        while not (interrupts.stop or interrupts.terminated):
            time.sleep(POLL)
        if any(job.state in LIVE for job in queue.jobs()):
            say("waiting for the run to stop; the same prompt goes on with it")
        queue.close()
        server.shutdown()
        server.server_close()
    return 0
