"""The studio's server: its page, what happens on it, and the files of the runs, for who knows the address.

    GET  /KEY/                the page                  GET  /KEY/events      what the queue does, as it happens
    GET  /KEY/words?prompt=   `words.look`, as JSON     GET  /KEY/cards       the runs, as a piece of the page
    GET  /KEY/RUN/asset       a page to turn it         GET  /KEY/RUN/FILE    a file of a run
    POST /KEY/jobs            {prompt, seed}            POST /KEY/drop        {number}

Names of files have a dot, all others have none. Files and asset pages get a sandbox: whatever a foreign run holds, its
scripts can ask nothing of the studio.
"""

from __future__ import annotations

import json
import logging
import mimetypes
import shutil
import time
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from threedgen.config.errors import ConfigError, in_a_line
from threedgen.run.prompts import tidy
from threedgen.run.text import clean
from threedgen.viewer.gallery import cards, sheets
from threedgen.viewer.local import HOST, REFUSAL, admitted, free_port
from threedgen.viewer.page import embedded, fragment, page
from threedgen.viewer.record import read_record
from threedgen.viewer.report import SCRIPTS

from .jobs import LIVE, Job, Queue, ordered
from .options import StudioConfig
from .words import look

logger = logging.getLogger(__name__)
OWN, FOREIGN = "frame-ancestors 'self'", "sandbox allow-scripts allow-downloads"
"""Policies of the studio's page and of what comes from runs."""
MOST_BYTES = 65_536
"""Of a request's body."""
HEARTBEAT = 15.0
"""Seconds after which a page that is told nothing hears that the studio is there."""
JSON, HTML = "application/json", "text/html; charset=utf-8"


class Server(ThreadingHTTPServer):
    """Answers below the path /`key`/ on 127.0.0.1. `root`: the folder of the runs."""

    daemon_threads = True

    def __init__(self, config: StudioConfig, root: Path, queue: Queue, key: str) -> None:
        self.config, self.root, self.queue, self.key = config, root, queue, key
        self.any_prompt = config.run_config("")
        super().__init__((HOST, free_port(config.port)), Handler)
        self.url = f"http://{HOST}:{self.server_address[1]}/{key}/"

    def state(self) -> str:
        """What the page shows of the queue, as JSON."""
        jobs = [self._shown(job) for job in self.queue.jobs()]
        return json.dumps({"jobs": jobs, "over": self.queue.over})

    def _shown(self, job: Job) -> dict[str, Any]:
        told = {name: value for name, value in asdict(job).items() if name != "command"}
        folder, picture = self.root / job.name, ""
        if job.state in LIVE:
            try:
                path = next((path for path, _, _ in sheets(read_record(folder))), None)
                picture = f"{path.relative_to(self.root).as_posix()}?{path.stat().st_mtime_ns}" if path else ""
            except (ConfigError, OSError):  # nothing there yet
                pass
        return told | {"picture": picture, "report": (folder / "report.html").is_file()}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 30

    def do_GET(self) -> None:
        self._answered({"": self._page, "events": self._events, "words": self._words, "cards": self._cards})

    def do_POST(self) -> None:
        self._answered({"jobs": self._add, "drop": self._drop}, files=False)

    def _answered(self, known: dict[str, Any], files: bool = True) -> None:
        """Answers what is asked for by who may ask; a mistake is its sentence."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        rest = admitted(self.path, self.server.key, hosts, origins)
        if rest is None:
            return self._send(REFUSAL, status=HTTPStatus.FORBIDDEN)
        place = urlsplit(f"/{rest}")
        name = place.path.removeprefix("/")
        try:
            if name in known:
                known[name](place.query)
            elif files:
                self._file(unquote(name))
            else:
                self._missing()
        except ConfigError as error:
            self._send(json.dumps({"error": str(error)}), JSON, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError) as error:  # who asked has gone
            logger.debug("%s", in_a_line(error))

    # --- what is asked for

    def _page(self, query: str) -> None:
        title, method = "threedgen studio", self.server.config.config
        self._send(page("studio.html", ("studio.js",), served=True, title=title, method=method), HTML)

    def _events(self, query: str) -> None:
        """The queue whenever it changes, until the reader goes away."""
        self._head("text/event-stream")
        told, heard = "", time.monotonic()
        while True:
            state = self.server.state()
            if state != told or time.monotonic() - heard > HEARTBEAT:
                self.wfile.write(f"data: {state}\n\n".encode())
                told, heard = state, time.monotonic()
            with self.server.queue.changed:
                self.server.queue.changed.wait(1.0)  # pictures come without a word

    def _words(self, query: str) -> None:
        prompt = parse_qs(query).get("prompt", [""])[0]
        self._send(json.dumps(look(prompt, self.server.any_prompt)), JSON)

    def _cards(self, query: str) -> None:
        found, _ = cards(self.server.root, self.server.root)
        self._send(fragment("cards.html", cards=found), HTML)

    def _add(self, query: str) -> None:
        asked = self._body()
        prompt, seed = asked.get("prompt"), asked.get("seed", 0)
        if not isinstance(prompt, str):
            raise ConfigError("should be a text", "prompt", prompt)
        job = ordered(self.server.config, self.server.root, tidy(prompt), seed)
        self.server.queue.add(job)
        self._send(json.dumps({"number": job.number}), JSON)

    def _drop(self, query: str) -> None:
        self.server.queue.drop(self._body().get("number", 0))
        self._send("{}", JSON)

    def _file(self, name: str) -> None:
        """A file below the folder of the runs, or the page of a run's asset; nothing that lies elsewhere."""
        root = self.server.root
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root.resolve()):
                return self._missing()
            if path.name == "asset" and path.parent != root and (path.parent / "config.yaml").is_file():
                return self._asset(path.parent)
            file = open(path, "rb")  # noqa: SIM115  it is closed below
        except (OSError, ValueError):
            return self._missing()
        with file:
            kind = "model/gltf-binary" if path.suffix == ".glb" else mimetypes.guess_type(path.name)[0]
            self._head(kind or "application/octet-stream", FOREIGN, path.stat().st_size)
            shutil.copyfileobj(file, self.wfile)

    def _asset(self, folder: Path) -> None:
        record = read_record(folder)
        file = record.model and record.model.relative_to(record.folder).as_posix()
        title = clean(record.prompt)[:80]
        values: dict[str, Any] = {"title": title, "model": embedded(record.model), "model_file": file}
        self._send(page("studio_asset.html", SCRIPTS, **values), HTML, policy=FOREIGN)

    # --- how it is answered

    def _body(self) -> dict[str, Any]:
        """What was posted. Raises ConfigError unless it is a JSON object of a few kilobytes."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            found = json.loads(self.rfile.read(length)) if 0 <= length <= MOST_BYTES else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ConfigError("a request should be a JSON object of 64 KiB at most")
        return found

    def _missing(self) -> None:
        self._send("there is no such thing\n", status=HTTPStatus.NOT_FOUND)

    def _send(self, text: str, kind: str = "text/plain", status: HTTPStatus = HTTPStatus.OK, policy: str = OWN) -> None:
        data = text.encode("utf-8", "replace")
        self._head(kind, policy, len(data), status)
        self.wfile.write(data)

    def _head(
        self, kind: str, policy: str = OWN, length: int | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in (
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing on stderr; a line for each request would hide what matters."""
        logger.debug(format, *args)
