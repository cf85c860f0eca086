"""Task `studio`: serve the page and the JSON API (`api.py`) with uvicorn until Ctrl-C."""

import logging
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import uvicorn

from threedgen.config.errors import ConfigError
from threedgen.run.disk import writing
from threedgen.run.folder import user_path
from threedgen.run.interrupts import Interrupts
from threedgen.run.text import say

from .api import create_app
from .job_queue import Queue
from .jobs import LIVE
from .options import StudioConfig

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.2  # interval of the checks for Ctrl-C
BACKLOG = 512  # connections that wait to be accepted
ACCEPTS = 16  # connections accepted in a row; without file descriptors asyncio logs each attempt, every second


def run(config: StudioConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `studio`: print the address of the page and serve it until Ctrl-C. Returns exit code 0.

    Ctrl-C also stops the current run, which keeps its checkpoint. `quiet`: print the address without the hint how to
    stop the studio. `resume` is an argument of all tasks and has no effect here.
    """
    root = user_path(config.out, "out").absolute()
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    if not config.local:
        logger.warning("the studio listens on %s without encryption. Use it in a trusted network only", config.host)
    with Interrupts("stopping the studio") as interrupts:
        interrupts.catch_sigterm()
        queue = Queue(root)
        with Server(config, root, queue) as server:
            note = "" if quiet else f" (stop with Ctrl-C; runs are in {config.out})"
            say(f"studio: {server.url}{note}")
            while not (interrupts.stop or interrupts.terminated):
                time.sleep(POLL_SECONDS)
            if any(job.state in LIVE for job in queue.jobs()):
                say("waiting for the run to stop; submit the same prompt again to resume it")
            queue.close()
    return 0


def listen(config: StudioConfig) -> socket.socket:
    """Return a socket that listens on the host and port of the config, or on any free port if the port is in use.

    Raises ConfigError if the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    for port in (config.port, 0):
        with suppress(OSError):
            return socket.create_server((config.host, port), family=family, backlog=BACKLOG)
    raise ConfigError("is not an address of this machine", "host", config.host)


class _Uvicorn(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(BACKLOG)  # asyncio has set ACCEPTS


class Server:
    """Context manager that runs the studio's web server in a thread.

    Its attribute `url` is the web address of the page. The address includes the secret token that grants access. The
    constructor raises ConfigError if the server cannot listen on `config.host`.

    Args:
        config: options of the studio, such as host, port and token.
        root: folder of the runs.
        queue: job queue that starts the runs.
        token: the secret token; None: the token of `config`, or else a random one.
    """

    def __init__(self, config: StudioConfig, root: Path, queue: Queue, token: str | None = None) -> None:
        token = token or config.own_token or secrets.token_urlsafe(16)
        self.app = create_app(config, root, queue, token)
        self.socket = listen(config)
        host = socket.gethostname() if config.host in ("0.0.0.0", "::") else config.host
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.socket.getsockname()[1]}/{token}/"
        self.server = _Uvicorn(
            uvicorn.Config(
                self.app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                backlog=ACCEPTS,
                timeout_graceful_shutdown=1,
            )
        )
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.app.state.studio.closing.set()
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()
