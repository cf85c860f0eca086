"""Client of the studio's HTTP API. It makes an asset file from a prompt or a mesh in a thread. It does not use bpy."""

import json
import re
import threading
import traceback
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

TIMEOUT = 30.0  # seconds without an answer after which a request fails
POLL_SECONDS = 0.5
ENDED = ("finished", "cancelled", "failed")  # states of a job that has ended
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class StudioError(Exception):
    """Error whose message is shown to the user: one sentence about the problem, and one about what to do."""


class Progress(NamedTuple):
    """Progress of a job: name of the current phase, fraction of the phase that is done, in [0, 1], and time left.

    The time left in the phase is a text, such as "6 s"; "": unknown.
    """

    phase: str
    fraction: float = 0.0
    left: str = ""

    def __str__(self) -> str:
        percent = f"{100 * self.fraction:.0f} %" if self.fraction else ""
        return ", ".join(filter(None, (self.phase, percent, self.left and f"{self.left} left")))


def read_progress(job: dict[str, Any]) -> Progress:
    """Return the progress of a job. `job` is the JSON object that describes the job in the studio's answers."""
    if not (found := job["progress"]):
        return Progress("waiting for other runs" if job["state"] == "waiting" else "starting")
    return Progress(found["phase"], min(found["done"] / max(found["total"], 1), 1.0), found["left"])


class Studio:
    """HTTP client of a studio (threedgen's web server) at `address`, such as "http://127.0.0.1:8090".

    `token` is the secret that grants access; "": it is part of the address, as in the one that the studio prints. The
    constructor raises StudioError if the address is invalid.
    """

    def __init__(self, address: str, token: str = "") -> None:
        text, self.token = address.strip(), token.strip()
        try:
            place = urlsplit(text if "://" in text else f"http://{text}")
            valid = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
        except ValueError:  # such as a port that is no number
            valid = False
        if not valid:
            raise StudioError("The server's address is wrong. Set one such as http://127.0.0.1:8090 in the preferences")
        self.server = f"{place.scheme}://{place.netloc}"
        self.local = place.hostname in LOCAL_HOSTS
        self._url = f"{self.server}{place.path.rstrip('/')}/api/v1/"
        self._open = build_opener(ProxyHandler({})).open

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """Send a request, with a body of bytes or of JSON data, and return the body of the answer.

        `path` is relative to the root of the API, such as "jobs". Raises StudioError if the studio does not answer or
        refuses the request.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {quote(self.token)}"}
        try:
            with self._open(Request(self._url + path, data, headers, method=method), timeout=TIMEOUT) as answer:
                return answer.read()
        except HTTPError as error:
            raise StudioError(self._explain(error)) from error
        except (OSError, HTTPException) as error:
            raise StudioError(
                f"No studio answers at {self.server}. Start it (python launch.py --config studio) or correct the "
                "address in the add-on's preferences"
            ) from error

    def json(self, method: str, path: str, body: object = None) -> Any:
        """Send a request and return the parsed JSON of the answer.

        Raises StudioError if the studio does not answer, refuses the request, or answers without JSON.
        """
        data = self.request(method, path, body)
        try:
            return json.loads(data)
        except ValueError as error:
            problem = f"{self.server} is not a threedgen studio"
            raise StudioError(f"{problem}. Correct the address in the preferences") from error

    def _explain(self, error: HTTPError) -> str:
        if error.code in (401, 403):
            return f"{self.server} refused the token. Copy the address that the studio printed into the preferences"
        if error.code == 413:
            return "The mesh is too large to upload. Reduce it, for example with a Decimate modifier"
        try:
            return str(json.load(error)["error"])
        except (ValueError, KeyError, TypeError, OSError, HTTPException):
            return (
                f"{self.server} answers with status {error.code}. Is it a studio? Check the address in the preferences"
            )


class Job(threading.Thread):
    """Thread that submits a job to the studio, follows its progress, and downloads the asset.

    After the thread has ended, `file` is the path of the GLB, or `error` is a message for the user. Neither is set if
    the job was cancelled.

    Args:
        prompt: description of the object, or of the look of the mesh.
        height: height of the object in metres; 0: the usual height of such an object.
        source: name of the mesh to texture; "": no mesh. The caller must write the mesh as GLB to the path in the
            attribute `mesh` before it calls `start`.
    """

    def __init__(self, studio: Studio, prompt: str, seed: int = 0, height: float = 0.0, source: str = "") -> None:
        super().__init__(daemon=True)
        self.studio, self.source = studio, source
        self.folder = TemporaryDirectory(prefix="threedgen-", ignore_cleanup_errors=True)
        self.mesh = Path(self.folder.name, "mesh.glb")
        self.order: dict[str, Any] = {"prompt": prompt, "seed": seed}
        if not source:
            self.order["export"] = {"formats": ["glb"], **({"height": height} if height else {})}
        self.progress = Progress("connecting")
        self.file: Path | None = None
        self.error = ""
        self._stop_event = threading.Event()

    def cancel(self) -> None:
        """End the thread within seconds, and cancel the run in the studio."""
        self._stop_event.set()

    @property
    def cancelled(self) -> bool:
        return self._stop_event.is_set()

    def run(self) -> None:
        try:
            self.file = self._make()
        except StudioError as error:
            self.error = str(error)
        except OSError as error:
            self.error = f"The asset was not saved: {error}. Free some disk space and generate again"
        except Exception:
            traceback.print_exc()
            self.error = "The add-on failed. Please report the text in the system console"

    def _make(self) -> Path | None:
        if self.source:
            self.progress = Progress("uploading the mesh")
            name = re.sub(r"[^\w-]+", "-", self.source)  # a slash would name a folder
            self.order["mesh"] = self.studio.json("PUT", f"files/{quote(name)}.glb", self.mesh.read_bytes())["name"]
        if self.cancelled:
            return None
        job = self.studio.json("POST", "jobs", self.order)
        while job["state"] not in ENDED:
            self.progress = read_progress(job)
            if self._stop_event.wait(POLL_SECONDS):
                self.studio.request("POST", f"jobs/{job['number']}/cancel", {})
                return None
            job = self.studio.json("GET", f"jobs/{job['number']}")
        if job["state"] != "finished":
            raise StudioError(
                job["error"] or "The run was cancelled on the studio's page. Generate again to continue it"
            )
        self.progress = Progress("downloading")
        run = f"runs/{quote(job['run'])}"
        source = "textured.glb"
        if not self.source:  # asset.json names the finest GLB first
            names = self.studio.json("GET", run)["asset"]["files"]
            source = next((f"asset/{name}" for name in names if name.endswith(".glb")), "")
        if not source:
            raise StudioError("The run made no asset. Read its report on the studio's page, or try another seed")
        path = Path(self.folder.name, Path(source).name)
        path.write_bytes(self.studio.request("GET", f"{run}/files/{quote(source)}"))
        return path
