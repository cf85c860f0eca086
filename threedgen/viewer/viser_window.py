"""Browser window of the live view, served by viser on 127.0.0.1 below a secret path."""

import io
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
import viser
import websockets.asyncio.server as web
from markupsafe import Markup, escape

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.run.arrays import Array
from threedgen.run.text import visible

from .local import HOST, REFUSAL, free_port, path_after_key

MAX_ASPECT = 4.0  # maximum ratio of the longer to the shorter image side; longer windows stretch the image
MIN_FOV, MAX_FOV = math.radians(1), math.radians(150)


class _LocalServer(viser.ViserServer):
    # never creates a public share URL
    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


class ViserWindow:
    """Browser window of a run: renders of the object, and a panel with prompt, metrics and a button to stop the run.

    A client is an open browser tab. Each has its own camera, at first `start` (a batch of one camera). The callback
    `LiveView` calls the methods of this class on the training thread; no call waits for a browser. `stop_clicked`
    becomes True when the user clicks the button. If `port` is in use, any free port is taken.
    """

    stop_clicked = False

    def __init__(self, prompt: str, port: int, start: Cameras) -> None:
        key = secrets.token_urlsafe(16)
        with redirect_stdout(io.StringIO()), _guarded(key):  # stdout is reserved for results, not for viser's banner
            self._server = _LocalServer(HOST, free_port(port), label="threedgen", verbose=False)
        self.url = f"http://{HOST}:{self._server.get_port()}/{key}/"
        server, gui = self._server, self._server.gui
        gui.configure_theme(show_logo=False, show_share_button=False)
        camera = server.initial_camera
        camera.position, camera.look_at = start.position[0].numpy(), np.zeros(3)
        camera.fov = float(start.fov[0])
        gui.add_html(_paragraphs([prompt]))
        self._bar = gui.add_progress_bar(0.0)
        self._lines = gui.add_html("")
        self._button = gui.add_button("Stop the run")

        @self._button.on_click
        def on_click(event: object) -> None:  # viser calls it from its own threads
            self.stop_clicked = True

    def cameras(self, size: int) -> dict[int, Cameras]:
        """Return a dict from client id to camera (a batch of one) for all connected clients (open browser tabs).

        Clients whose camera is not valid yet are left out. `size` is the image height of the cameras in pixels.
        """
        found = {}
        for client_id, client in self._server.get_clients().items():
            view = client.camera
            aspect = view.image_width / view.image_height if view.image_height else math.nan
            rotation = viser.transforms.SO3(view.wxyz).as_matrix()
            found[client_id] = client_camera(rotation, view.position, view.fov, aspect, size)
        return {client_id: camera for client_id, camera in found.items() if camera is not None}

    def show(self, client_id: int, image: Array) -> None:
        """Show an image (H, W, 3), uint8, in one client (browser tab). If the client has disconnected, do nothing."""
        client = self._server.get_clients().get(client_id)
        if client is not None:
            client.scene.set_background_image(image, format="png")

    def update(self, progress: float, lines: list[str], busy: bool) -> None:
        """Update the panel with the progress in [0, 1] and lines of plain text.

        If `busy` is True, the button that stops the run is disabled, so that a click has no effect; False enables it.
        """
        self._bar.value = 100 * progress
        self._lines.content = _paragraphs(lines)
        self._button.disabled = busy

    def close(self) -> None:
        self._server.flush()
        with redirect_stdout(io.StringIO()):
            self._server.stop()


def client_camera(rotation: Array, position: Array, fov: float, aspect: float, size: int) -> Cameras | None:
    """Return the camera of a browser tab (a batch of one); None if an argument is invalid, as it is while a tab opens.

    Args:
        rotation: camera-to-world rotation (3, 3), OpenCV axes (x right, y down, z forward).
        position: camera position (3,), world units.
        fov: vertical field of view, radians; clamped to [MIN_FOV, MAX_FOV].
        aspect: width / height; clamped to [1 / MAX_ASPECT, MAX_ASPECT].
        size: image height, pixels.
    """
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = rotation, position
    if not np.isfinite(c2w).all() or not math.isfinite(fov) or not (math.isfinite(aspect) and aspect > 0):
        return None
    width = max(1, round(size * min(max(aspect, 1 / MAX_ASPECT), MAX_ASPECT)))
    projection = Projection.perspective(torch.tensor([min(max(fov, MIN_FOV), MAX_FOV)]), size, width)
    return Cameras(opencv_axes(torch.from_numpy(c2w).float())[None], projection, size, width)


@contextmanager
def _guarded(key: str) -> Iterator[None]:
    # A viser server that starts in this context answers only local requests below the secret path /KEY/. Viser has no
    # access control, so `websockets.serve` is replaced in this context. RuntimeError if viser did not call it.
    serve, calls = web.serve, list[bool]()

    def guarded_serve(*args: Any, process_request: Callable[..., Any], **options: Any) -> Any:
        def process(connection: Any, request: Any) -> Any:
            rest = path_after_key(request.path, key, request.headers.get_all("Host"), request.headers.get_all("Origin"))
            if rest is None:
                return connection.respond(HTTPStatus.FORBIDDEN, REFUSAL)
            request.path = f"/{rest.partition('?')[0]}"
            return process_request(connection, request)

        calls.append(True)
        return serve(*args, process_request=process, **options)

    library: Any = web
    library.serve = guarded_serve
    try:
        yield
    finally:
        library.serve = serve
    if not calls:
        raise RuntimeError(f"cannot restrict access to the live view: viser={viser.__version__}. Use another version.")


def _paragraphs(lines: list[str]) -> str:
    style = "margin: 0.4em 1em; overflow-wrap: anywhere; font-size: 0.9em"
    return "".join(Markup('<p style="{}">{}</p>').format(style, escape(visible(line))) for line in lines)
