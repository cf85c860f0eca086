"""Task `studio`: HTTP server of the page, its requests and the files of the runs, all below a secret path.

    GET  /KEY/                page                            GET  /KEY/state       jobs of the queue, as JSON
    GET  /KEY/words?prompt=   `check_prompt`, as JSON         GET  /KEY/cards       cards of the runs, as HTML
    GET  /KEY/RUN/asset       3D view of a run's asset        GET  /KEY/RUN/FILE    file of a run
    POST /KEY/jobs            {prompt, seed}                  POST /KEY/drop        {number}

File names contain a dot and all other names do not. Files and asset pages are sandboxed, so that their scripts cannot
send requests to the studio.
"""

import json
import logging
import mimetypes
import secrets
import shutil
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from threedgen.config.errors import ConfigError, in_a_line
from threedgen.guidance.weights.tokens import prompt_reader
from threedgen.run.disk import Tree, writing
from threedgen.run.folder import user_path
from threedgen.run.interrupts import Interrupts
from threedgen.run.prompts import normalise_prompt
from threedgen.run.text import clean, say
from threedgen.systems.prompted import PromptedConfig
from threedgen.viewer.gallery import cards, contact_sheets
from threedgen.viewer.local import HOST, REFUSAL, admitted, free_port
from threedgen.viewer.page import SCRIPTS, embedded, fragment, page
from threedgen.viewer.record import read_record

from .jobs import LIVE, Job, Queue, make_job
from .options import StudioConfig

logger = logging.getLogger(__name__)
OWN_POLICY, RUN_POLICY = "frame-ancestors 'self'", "sandbox allow-scripts allow-downloads"
"""Content security policy of the studio's own page, and that of the files of runs."""
MAX_BODY_BYTES = 65_536
POLL_SECONDS = 0.2  # interval of the checks for Ctrl-C
JSON, HTML = "application/json", "text/html; charset=utf-8"


def run(config: StudioConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `studio`: print the address of the page and serve it until Ctrl-C, which stops the current run."""
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


class Server(ThreadingHTTPServer):
    """HTTP server on 127.0.0.1 that answers requests below the secret path /`key`/ about the runs in `root`."""

    daemon_threads = True

    def __init__(self, config: StudioConfig, root: Path, queue: Queue, key: str) -> None:
        self.config, self.root, self.queue, self.key = config, root, queue, key
        self.any_prompt = config.run_config("")
        super().__init__((HOST, free_port(config.port)), Handler)
        self.url = f"http://{HOST}:{self.server_address[1]}/{key}/"

    def describe(self, job: Job) -> Tree:
        """Return the state of a job for the page, with the newest image of a running job."""
        state = {name: value for name, value in asdict(job).items() if name != "command"}
        folder, image = self.root / job.name, ""
        if job.state in LIVE:
            try:
                path = next((path for path, _, _ in contact_sheets(read_record(folder))), None)
                image = f"{path.relative_to(self.root).as_posix()}?{path.stat().st_mtime_ns}" if path else ""
            except (ConfigError, OSError):  # no files yet
                pass
        return state | {"picture": image, "report": (folder / "report.html").is_file()}


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30

    def do_GET(self) -> None:
        self._answer({"": self._page, "state": self._state, "words": self._words, "cards": self._cards})

    def do_POST(self) -> None:
        self._answer({"jobs": self._add, "drop": self._drop}, files=False)

    def _answer(self, routes: Mapping[str, Callable[[str], None]], files: bool = True) -> None:
        """Answer an allowed request with its route, or with a file. A ConfigError becomes JSON with status 400."""
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        rest = admitted(self.path, self.server.key, hosts, origins)
        if rest is None:
            return self._send(REFUSAL, status=HTTPStatus.FORBIDDEN)
        url = urlsplit(f"/{rest}")
        name = url.path.removeprefix("/")
        try:
            if name in routes:
                routes[name](url.query)
            elif files:
                self._file(unquote(name))
            else:
                self._not_found()
        except ConfigError as error:
            self._send(json.dumps({"error": str(error)}), JSON, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError) as error:  # the client disconnected
            logger.debug("%s", in_a_line(error))

    def _page(self, query: str) -> None:
        title, method = "threedgen studio", self.server.config.config
        self._send(page("studio.html", ("studio.js",), served=True, title=title, method=method), HTML)

    def _state(self, query: str) -> None:
        jobs = [self.server.describe(job) for job in self.server.queue.jobs()]
        self._send(json.dumps({"jobs": jobs, "over": self.server.queue.over}), JSON)

    def _words(self, query: str) -> None:
        prompt = parse_qs(query).get("prompt", [""])[0]
        self._send(json.dumps(check_prompt(prompt, self.server.any_prompt)), JSON)

    def _cards(self, query: str) -> None:
        found, _ = cards(self.server.root, self.server.root)
        self._send(fragment("cards.html", cards=found), HTML)

    def _add(self, query: str) -> None:
        body = self._body()
        prompt, seed = body.get("prompt"), body.get("seed", 0)
        if not isinstance(prompt, str):
            raise ConfigError("should be a text", "prompt", prompt)
        job = make_job(self.server.config, self.server.root, normalise_prompt(prompt), seed)
        self.server.queue.add(job)
        self._send(json.dumps({"number": job.number}), JSON)

    def _drop(self, query: str) -> None:
        self.server.queue.drop(self._body().get("number", 0))
        self._send("{}", JSON)

    def _file(self, name: str) -> None:
        """Send a file in the folder of the runs, or the asset page of a run; send status 404 for any path outside."""
        root = self.server.root
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root.resolve()):
                return self._not_found()
            if path.name == "asset" and path.parent != root and (path.parent / "config.yaml").is_file():
                return self._asset(path.parent)
            file = open(path, "rb")  # noqa: SIM115  closed below
        except (OSError, ValueError):
            return self._not_found()
        with file:
            kind = "model/gltf-binary" if path.suffix == ".glb" else mimetypes.guess_type(path.name)[0]
            self._head(kind or "application/octet-stream", RUN_POLICY, path.stat().st_size)
            shutil.copyfileobj(file, self.wfile)

    def _asset(self, folder: Path) -> None:
        record = read_record(folder)
        file = record.model and record.model.relative_to(record.folder).as_posix()
        title = clean(record.prompt)[:80]
        values: Tree = {"title": title, "model": embedded(record.model), "model_file": file}
        self._send(page("studio_asset.html", SCRIPTS, **values), HTML, policy=RUN_POLICY)

    def _body(self) -> Tree:
        """Parse the request body. Raises ConfigError unless it is a JSON object of at most MAX_BODY_BYTES."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            body = json.loads(self.rfile.read(length)) if 0 <= length <= MAX_BODY_BYTES else None
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise ConfigError("the request body should be a JSON object of at most 64 KiB")
        return body

    def _not_found(self) -> None:
        self._send("not found\n", status=HTTPStatus.NOT_FOUND)

    def _send(
        self, text: str, kind: str = "text/plain", status: HTTPStatus = HTTPStatus.OK, policy: str = OWN_POLICY
    ) -> None:
        data = text.encode("utf-8", "replace")
        self._head(kind, policy, len(data), status)
        self.wfile.write(data)

    def _head(
        self, kind: str, policy: str = OWN_POLICY, length: int | None = None, status: HTTPStatus = HTTPStatus.OK
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

    def log_message(self, format: str, *args: object) -> None:
        """Log a request at level debug; the base class would print it to stderr."""
        logger.debug(format, *args)


def check_prompt(prompt: str, config: Any) -> Tree:
    """Check a prompt against the vocabulary of a run config's prior. Raises ConfigError for a damaged vocabulary.

    Returns a dict, with empty values for a prior without a vocabulary:
        words: a dict per word: `word`, `known` (whether the vocabulary contains it), `near` (similar known words).
        notes: warnings for the user.
        nouns: suggested nouns.
        typed: the unfinished last word, which a suggested noun replaces, or "".
    """
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    if vocabulary is None:
        return {"words": [], "notes": [], "nouns": [], "typed": ""}
    unknown = dict(vocabulary.unknown(prompt))
    words = [{"word": w, "known": w not in unknown, "near": unknown.get(w, [])} for w in vocabulary.split(prompt)]
    typed, nouns = prompt_reader(vocabulary).suggest(prompt)
    notes = config.model_copy(update={"prompt": prompt}).prompt_notes()
    return {"words": words, "notes": notes, "nouns": nouns, "typed": typed}
