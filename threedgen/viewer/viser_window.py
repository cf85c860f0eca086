"""The window of the live view as a page in a browser, by viser; on 127.0.0.1 only, and for who knows its address."""

from __future__ import annotations

import math
import queue
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import numpy as np
import rich
import viser
import websockets.asyncio.server as web
from markupsafe import Markup, escape

from threedgen.geometry.cameras import Cameras
from threedgen.run.arrays import Array
from threedgen.run.text import visible

from .live import EXPORT, STOP, Eye
from .local import HOST, REFUSAL, admitted, free_port


class _Local(viser.ViserServer):
    """A page could ask the server for a public address of it: it gets none."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


class ViserWindow:
    """A server with one page: the field fills it, a panel has the prompt, the figures and the buttons.

    `start`: the camera with which a page begins; people turn it from there. The methods are called on the thread that
    trains, and wait for nobody.
    """

    def __init__(self, prompt: str, port: int, start: Cameras) -> None:
        key = secrets.token_urlsafe(16)
        with _hushed(), _guarded(key):
            self._server = _Local(HOST, free_port(port), label="threedgen", verbose=False)
        self.url = f"http://{HOST}:{self._server.get_port()}/{key}/"
        self._open = True
        self._pressed: queue.SimpleQueue[str] = queue.SimpleQueue()
        server, gui = self._server, self._server.gui
        gui.configure_theme(show_logo=False, show_share_button=False)
        camera = server.initial_camera
        camera.position, camera.look_at = start.position[0].numpy(), np.zeros(3)
        camera.fov = float(start.fov[0])
        gui.add_html(_paragraphs([prompt]))
        self._bar = gui.add_progress_bar(0.0)
        self._lines = gui.add_html("")
        self._buttons = {EXPORT: gui.add_button("Export the asset"), STOP: gui.add_button("Stop the run")}
        for name, button in self._buttons.items():  # viser calls from threads of its own
            button.on_click(lambda event, name=name: self._pressed.put(name))

    def eyes(self) -> list[Eye]:
        """Lists those who look at present."""
        found = []
        for name, client in self._server.get_clients().items():
            camera = client.camera
            height = camera.image_height
            aspect = camera.image_width / height if height else math.nan
            rotation = viser.transforms.SO3(camera.wxyz).as_matrix()
            found.append(Eye.opencv(name, rotation, camera.position, camera.fov, aspect))
        return [eye for eye in found if eye is not None]

    def show(self, eye: Eye, picture: Array) -> None:
        """Shows a picture (H, W, 3), uint8, to one of them, who may have gone."""
        client = self._server.get_clients().get(eye.name)
        if client is not None:
            client.scene.set_background_image(picture, format="png")

    def tell(self, done: float, lines: list[str], busy: bool) -> None:
        """Shows how far the run is, in [0, 1], and lines of plain text; while it is busy no button can be pressed."""
        self._bar.value = 100 * done
        self._lines.content = _paragraphs(lines)
        for button in self._buttons.values():
            button.disabled = busy

    def pressed(self) -> set[str]:
        """Takes the buttons that were pressed since this was last asked."""
        return {self._pressed.get() for _ in range(self._pressed.qsize())}

    def close(self) -> None:
        """Stops the server for good; may be called twice."""
        if self._open:
            self._open = False
            self._server.flush()
            with _hushed():
                self._server.stop()


@contextmanager
def _guarded(key: str) -> Iterator[None]:
    """Lets a server that viser begins inside answer this machine only, below /`key`/; viser's own lets in anybody.

    Raises RuntimeError if viser began none by this way, which would be a server without a guard.
    """
    serve, begun = web.serve, list[bool]()

    def guarded_serve(*words: Any, process_request: Callable[..., Any], **options: Any) -> Any:
        def process(connection: Any, request: Any) -> Any:
            rest = admitted(request.path, key, request.headers.get_all("Host"), request.headers.get_all("Origin"))
            if rest is None:
                return connection.respond(HTTPStatus.FORBIDDEN, REFUSAL)
            request.path = f"/{rest.partition('?')[0]}"
            return process_request(connection, request)

        begun.append(True)
        return serve(*words, process_request=process, **options)

    library: Any = web
    library.serve = guarded_serve
    try:
        yield
    finally:
        library.serve = serve
    if not begun:
        raise RuntimeError("this version of viser cannot be guarded")


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps viser from announcing itself on stdout, which is for results."""
    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def _paragraphs(lines: list[str]) -> str:
    """Lays out plain text as HTML; a prompt may hold markup, which stays text."""
    style = "margin: 0.4em 1em; overflow-wrap: anywhere; font-size: 0.9em"
    return "".join(Markup('<p style="{}">{}</p>').format(style, escape(visible(line))) for line in lines)
