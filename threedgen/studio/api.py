"""Web application of the studio: JSON API version 1, page, access control. `docs/studio.md` describes it for users.

Errors are {"error": text} with status 400 for a body that is not text, 401 without the token, 403 for a request of a
foreign page, 404 for a missing job, run or file, 409 for a request that the state of a job does not allow, 413 for a
body that is too large, 422 for an invalid value, and 500 for a file that cannot be read, written or deleted.
"""

import asyncio
import mimetypes
import secrets
import socket
from collections.abc import AsyncIterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, HTTPException, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threedgen import __version__
from threedgen.config.errors import ConfigError
from threedgen.export.options import PRESETS
from threedgen.run.disk import Tree
from threedgen.run.text import clean
from threedgen.viewer.gallery import best_jpeg, records
from threedgen.viewer.local import LOCAL_NAMES, REFUSAL, is_local
from threedgen.viewer.page import SCRIPTS, asset_variables, page
from threedgen.viewer.report import files

from .job_queue import Conflict, Queue
from .jobs import export_job
from .options import StudioConfig
from .schema import AssetOrder, Error, JobInfo, Order, RunInfo, Status, Upload, Words, check_prompt, vocabulary_of
from .state import RUN_TASKS, SUFFIXES, UPDATE_SECONDS, Studio, describe_run, plain_words

OWN_POLICY, RUN_POLICY = "frame-ancestors 'self'", "sandbox allow-scripts allow-downloads"
"""Content security policies: of the studio's own page, and of files of runs."""
HEADERS = {
    "Content-Security-Policy": OWN_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Access:
    """ASGI middleware that refuses requests without the token (401) or of foreign pages (403), and large bodies (413).

    Bodies may have up to 64 MB in PUT requests (uploads), and 64 KiB in others. The token is the first part of the
    path, or in the header `Authorization: Bearer TOKEN`. The header Host is checked against DNS rebinding: a foreign
    site can make its own name resolve to this machine, but the browser then sends the foreign name.

    Args:
        token: secret that grants access.
        host: address that the server listens on. If it is local, the header Host must be one of `LOCAL_NAMES`, such
            as localhost. If it is not, the names of this machine and any IP address are allowed too. Ports are not
            checked, because ssh tunnels change them.
    """

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self.app, self.token = app, token
        self.any_address = host not in LOCAL_NAMES
        names = (host, socket.gethostname(), socket.getfqdn()) if self.any_address else ()
        self.names = {*LOCAL_NAMES, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if self._is_token(unquote(first)):
            scope = {**scope, "path": f"/{rest}", "raw_path": None}
        elif scheme.lower() != "bearer" or not self._is_token(bearer.strip()):
            return await _refuse(401, scope, receive, send)
        if not is_local(headers.getlist("host"), headers.getlist("origin"), self.names, self.any_address):
            return await _refuse(403, scope, receive, send)

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    sent.setdefault(name, value)
            await send(message)

        left = MAX_UPLOAD_BYTES if scope["method"] == "PUT" else MAX_BODY_BYTES

        async def receive_limited() -> Message:  # Starlette's limit answers in plain text
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, "the request is too large")
            return message

        return await self.app(scope, receive_limited, send_protected)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self.token.encode())


async def _refuse(code: int, scope: Scope, receive: Receive, send: Send) -> None:
    headers = HEADERS | ({"WWW-Authenticate": "Bearer"} if code == 401 else {})
    await JSONResponse({"error": REFUSAL.strip()}, code, headers)(scope, receive, send)


ROOT = "/api/v1"
MAX_BODY_BYTES, MAX_UPLOAD_BYTES = 65_536, 64_000_000


BINARY = {"schema": {"type": "string", "format": "binary"}}
TOKEN = HTTPBearer(auto_error=False, description="token of the studio, which can also be the first part of the path")


class Events(EventSourceResponse):
    media_type = ""  # FastAPI would document errors with the type of the stream


def create_app(config: StudioConfig, root: Path, queue: Queue, token: str) -> FastAPI:
    """Return the web application of the studio, with access control by the secret `token`.

    `root` is the folder of the runs, and `queue` the job queue that starts the runs.
    """
    app = FastAPI(
        title="threedgen studio",
        version=__version__,
        summary="Objects from prompts, one run at a time",
        openapi_url=f"{ROOT}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "../.."}],  # relative to openapi.json, so that it has the token of the address
        dependencies=[Security(TOKEN)],  # documents the token, which Access checks
        responses={code: {"model": Error} for code in (400, 401, 403, 404, 409, 413, 422, 500)},
    )
    app.add_middleware(Access, token=token, host=config.host)
    _add_error_handlers(app)
    studio = Studio(config, root, queue)
    any_prompt = config.run_config("")

    @app.get("/", include_in_schema=False)
    def home() -> HTMLResponse:
        values: Tree = {"title": "threedgen studio", "presets": PRESETS, "suffixes": sum(SUFFIXES.values(), ())}
        return HTMLResponse(page("studio.html", ("studio.js",), served=True, **values))

    @app.get(f"{ROOT}/", include_in_schema=False)
    def documentation() -> HTMLResponse:
        return HTMLResponse(page("studio_api.html", (), title="threedgen studio API", api=app.openapi()))

    @app.get(f"{ROOT}/words")
    def words(prompt: str = "") -> Words:
        """Check a prompt: return which words the prior (text-to-image model) knows, warnings, and suggested nouns."""
        return check_prompt(prompt[:2000], any_prompt)

    @app.get(f"{ROOT}/vocabulary")
    def vocabulary() -> dict[str, list[str]]:
        """Return the vocabulary of the prior (the text-to-image model) by category; {} if the prior takes any text."""
        return vocabulary_of(any_prompt)

    @app.get(f"{ROOT}/jobs")
    def list_jobs() -> Status:
        """List the jobs in the queue, in the order of their submission."""
        return studio.status()

    @app.post(f"{ROOT}/jobs", status_code=201)
    def submit(order: Order) -> JobInfo:
        """Submit a job. A finished run of the same request is not repeated, and an unfinished run of it is resumed."""
        job = studio.job(order)
        queue.add(job)
        return studio.describe(job)

    @app.get(f"{ROOT}/jobs/{{number}}")
    def get_job(number: int) -> JobInfo:
        """Return the state and the progress of a job."""
        return studio.describe(studio.find(number))

    @app.post(f"{ROOT}/jobs/{{number}}/cancel", status_code=202)
    def cancel(number: int) -> JobInfo:
        """Cancel a job, which then ends within two seconds. Its run keeps the last checkpoint, and has no result."""
        job = studio.find(number)
        queue.cancel(job)
        return studio.describe(job)

    @app.post(f"{ROOT}/jobs/{{number}}/finish", status_code=202)
    def finish(number: int) -> JobInfo:
        """Export the object of a running, cancelled or failed job in its current state. A running job stops first."""
        job = studio.find(number)
        queue.finish(job)
        return studio.describe(job)

    @app.post(f"{ROOT}/jobs/{{number}}/again", status_code=202)
    def again(number: int) -> JobInfo:
        """Continue a job that was cancelled or failed, from its last checkpoint."""
        job = studio.find(number)
        queue.resume(job)
        return studio.describe(job)

    @app.delete(f"{ROOT}/jobs/{{number}}", status_code=204)
    def remove(number: int) -> None:
        """Remove a waiting or ended job from the queue. The files of its run stay."""
        job = studio.find(number)
        queue.remove(job)

    @app.get(f"{ROOT}/events", response_class=Events)
    async def events() -> AsyncIterable[Status]:
        """Send the state of the queue as server-sent events: now, and after each change."""
        last = None
        while not studio.closing.is_set():
            status = await run_in_threadpool(studio.status)
            if status != last:
                yield status
            last = status
            await asyncio.sleep(UPDATE_SECONDS)

    body = {"requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}}

    @app.put(f"{ROOT}/files/{{name}}", status_code=201, openapi_extra=body)
    async def upload(name: str, request: Request) -> Upload:
        """Upload an image or a mesh, as the body of the request; `name` is its file name. Return its new name."""
        return await run_in_threadpool(studio.store, name, await request.body())

    @app.get(f"{ROOT}/runs")
    def list_runs() -> list[RunInfo]:
        """List the runs that have a result, newest first."""
        return [describe_run(record, root) for record in records(root, RUN_TASKS)[0] if record.has_result]

    @app.get(f"{ROOT}/runs/{{name:path}}/files/{{file:path}}", response_class=FileResponse, responses=content("*/*"))
    def get_file(name: str, file: str) -> Response:
        """Return a file of the run `name`. `file` is its path in the run folder."""
        path = studio.file(name, file)
        kind = "model/gltf-binary" if path.suffix == ".glb" else mimetypes.guess_type(path.name)[0]
        headers = {"Content-Security-Policy": RUN_POLICY}
        return FileResponse(path, headers=headers, media_type=kind or "application/octet-stream")

    @app.get(f"{ROOT}/runs/{{name:path}}/image", response_class=Response, responses=content("image/jpeg"))
    def get_image(name: str) -> Response:
        """Return a small image of the result of the run `name`, seen from one side, as a JPEG file."""
        data = best_jpeg(studio.record(name))
        if data is None:
            raise HTTPException(404, "this run has no image")
        return Response(data, media_type="image/jpeg")

    @app.get(f"{ROOT}/runs/{{name:path}}/view", include_in_schema=False)
    def view(name: str) -> HTMLResponse:
        record = studio.record(name)
        values = asset_variables(record.folder, record.model, record.splats)
        text = page("studio_asset.html", SCRIPTS, title=clean(record.prompt)[:80], **values)
        return HTMLResponse(text, headers={"Content-Security-Policy": RUN_POLICY})

    @app.post(f"{ROOT}/runs/{{name:path}}/export", status_code=201)
    def export_again(name: str, options: AssetOrder) -> JobInfo:
        """Submit a job that exports the asset of a run again with other options, and replaces the asset's files."""
        studio.record(name)
        job = export_job(root, name, options)
        queue.add(job)
        return studio.describe(job)

    @app.get(f"{ROOT}/runs/{{name:path}}")
    def get_run(name: str) -> RunInfo:
        """Return a run that has a result, with the sizes of its files."""
        record = studio.record(name)
        return describe_run(record, root).model_copy(update={"files": dict(files(record.folder))})

    @app.delete(f"{ROOT}/runs/{{name:path}}", status_code=204)
    def delete_run(name: str) -> None:
        """Delete a run with all its files."""
        studio.delete(name)

    app.state.studio = studio
    return app


def content(kind: str) -> dict[int | str, dict[str, Any]]:
    """Return the argument `responses` of a FastAPI route whose response is a file of the media type `kind`.

    It is {200: description of the response in the OpenAPI format}. `kind` is for example "image/jpeg".
    """
    return {200: {"content": {kind: BINARY}}}


def _add_error_handlers(app: FastAPI) -> None:
    def answer(code: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, code)

    @app.exception_handler(ConfigError)
    def refused(request: Request, error: ConfigError) -> JSONResponse:
        return answer(422, plain_words(str(error)))

    @app.exception_handler(Conflict)
    def conflict(request: Request, error: Conflict) -> JSONResponse:
        return answer(409, error.problem)

    @app.exception_handler(OSError)
    def disk_failed(request: Request, error: OSError) -> JSONResponse:
        return answer(500, f"a file cannot be read, written or deleted: {error.strerror or error}")

    @app.exception_handler(AnyHTTPException)
    def failed(request: Request, error: AnyHTTPException) -> JSONResponse:
        headers = error.headers
        if error.status_code == 405:  # list the methods of all routes with this path, not only of the first
            here = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            same = [vars(route) for route in here if vars(route)["path"] == vars(here[0])["path"]]
            headers = {"Allow": ", ".join(sorted({method for route in same for method in route["methods"]}))}
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        problem = str(first["msg"]).removeprefix("Value error, ")
        return answer(422, f"{place}: {problem}" if place else problem)
