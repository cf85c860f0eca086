"""Task `studio`: serve the page until Ctrl-C, then stop the current run. The run can be resumed later."""

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

POLL_SECONDS = 0.2
"""Interval in seconds at which the task checks for Ctrl-C."""


def run(config: StudioConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `studio`: print the address of the page and serve it until Ctrl-C. Returns exit code 0."""
    root = user_path(config.out, "out").absolute()
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with Interrupts() as interrupts:
        interrupts.catch_sigterm()
        queue = Queue()
        server = Server(config, root, queue, secrets.token_urlsafe(16))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        say(f"studio: {server.url}" if quiet else f"studio: {server.url} (stop with Ctrl-C; runs are in {config.out})")
        if config.open_browser:
            webbrowser.open(server.url)
        while not (interrupts.stop or interrupts.terminated):
            time.sleep(POLL_SECONDS)
        if any(job.state in LIVE for job in queue.jobs()):
            say("waiting for the run to stop; submit the same prompt again to resume it")
        queue.close()
        server.shutdown()
        server.server_close()
    return 0
