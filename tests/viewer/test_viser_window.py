import http.client
import io
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

viser = pytest.importorskip("viser")

import msgspec  # noqa: E402  dependencies of viser
import websockets.sync.client  # noqa: E402
import zstandard  # noqa: E402

from tests.support.waiting import when  # noqa: E402
from threedgen.geometry.rigs import orbit  # noqa: E402
from threedgen.viewer import viser_window  # noqa: E402
from threedgen.viewer.local import HOST  # noqa: E402
from threedgen.viewer.viser_window import ViserWindow, client_camera  # noqa: E402

PROMPT = "<b>a dog</b> ![x](http://example.com/x.png)"
PATIENCE = 60.0  # seconds


@pytest.fixture
def window(capfd: pytest.CaptureFixture[str]) -> Iterator[ViserWindow]:
    """Open window; viser must not print to stdout."""
    window = ViserWindow(PROMPT, 0, orbit(1, 0.25, 2.6, 0.7, 8, 8))
    yield window
    window.close()
    assert capfd.readouterr().out == ""


class Client:
    """Client without a browser: sends its camera, records all messages, clicks buttons."""

    def __init__(self, url: str) -> None:
        self.messages: list[dict[str, Any]] = []
        self.socket = websockets.sync.client.connect(
            url.replace("http", "ws").rstrip("/"),
            subprotocols=[f"viser-v{viser.__version__}"], compression=None, max_size=None,
            origin="/".join(url.split("/")[:3]),  # as a browser sends it
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Decode the stream: two 8-byte sizes, packed messages, then large arrays (unused here)."""
        for data in self.socket:
            length = int.from_bytes(data[8:16], "little")
            self.messages += msgspec.msgpack.decode(zstandard.decompress(data[16 : 16 + length]))["messages"]

    def send(self, **message: Any) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def look(self, position: tuple[float, float, float], width: int = 300, height: int = 200) -> None:
        """Send a camera that looks along -y: OpenCV's z is the world's -y, its y the world's -z."""
        self.send(
            type="ViewerCameraMessage", wxyz=(0.0, 0.0, 2**-0.5, -(2**-0.5)), position=position, fov=0.8, near=0.01,
            far=100.0, image_height=height, image_width=width, look_at=(0.0, 0.0, 0.0), up_direction=(0.0, 0.0, 1.0),
        )  # fmt: skip

    def received(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in list(self.messages) if message["type"] == kind]

    def click(self, label: str) -> None:
        buttons = when(lambda: [m for m in self.received("GuiButtonMessage") if m["props"]["label"] == label], label)
        self.send(type="GuiUpdateMessage", uuid=buttons[0]["uuid"], updates={"value": True})


def test_client_camera_image_and_clicks(window: ViserWindow) -> None:
    assert window.cameras(20) == {} and not window.stop_clicked
    client = Client(window.url)
    client.look((0.0, 2.5, 0.0))
    ((viewer, camera),) = when(lambda: window.cameras(20), "a client").items()
    assert (camera.height, camera.width) == (20, 30) and float(camera.fov[0]) == pytest.approx(0.8)
    assert camera.position[0].tolist() == pytest.approx([0, 2.5, 0])
    directions = camera.rays()[1][0]
    assert directions.mean((0, 1))[::2].tolist() == pytest.approx([0, 0], abs=1e-5)
    assert float(directions[..., 1].max()) < 0 < float(directions[0, :, 2].min())  # the first row looks up
    assert float(directions[:, 0, 0].min()) > 0  # the left is +x, seen from +y
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15] = (250, 20, 30)
    window.show(viewer, image)
    backgrounds = lambda: [m["rgb_data"] for m in client.received("BackgroundImageMessage") if m["rgb_data"]]  # noqa: E731
    data = when(backgrounds, "the image")[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), image)
    client.click("Stop the run")
    when(lambda: window.stop_clicked, "the click")
    client.socket.close()
    when(lambda: not window.cameras(20), "the disconnect")
    window.show(viewer, image)  # no error after the disconnect


def test_invalid_camera_is_none_and_extreme_camera_is_clamped() -> None:
    nan, inf = float("nan"), float("inf")
    for x, fov, aspect in ((nan, 0.7, 1.0), (0, inf, 1.0), (0, 0.7, nan), (0, 0.7, 0.0)):
        assert client_camera(np.eye(3), np.array([x, 0, 3]), fov, aspect, 16) is None
    camera = client_camera(np.eye(3), np.zeros(3), 9.0, 1000.0, 16)
    assert camera is not None and camera.width == 64 and float(camera.fov) < 2.7
    assert all(torch.isfinite(part).all() for part in camera.rays())


def test_metrics_and_prompt_are_escaped(window: ViserWindow) -> None:
    client = Client(window.url)
    window.update(0.25, ["step 3 of <i>12</i>", "loss 0.5"], busy=True)
    texts = lambda: "".join(str(m) for m in [*client.received("GuiHtmlMessage"), *client.received("GuiUpdateMessage")])  # noqa: E731
    when(lambda: "loss 0.5" in texts() and "a dog" in texts(), "the metrics")
    assert "&lt;b&gt;a dog&lt;/b&gt;" in texts() and "step 3 of &lt;i&gt;12&lt;/i&gt;" in texts()
    assert "<b>" not in texts() and "<i>" not in texts()
    assert window._bar.value == 25 and window._button.disabled
    client.socket.close()


def test_server_listens_on_localhost_only(window: ViserWindow) -> None:
    assert window.url.startswith(f"http://{HOST}:") and window._server.get_host() == HOST == "127.0.0.1"
    with urllib.request.urlopen(window.url, timeout=PATIENCE) as answer:
        assert b"<html" in answer.read()
    with pytest.raises(OSError):  # another interface of this machine
        socket.create_connection(("127.0.0.2", window._server.get_port()), timeout=5)
    client = Client(window.url)
    client.send(type="ShareUrlRequest")  # as the share button of viser's own pages
    client.look((0.0, 2.5, 0.0))
    when(lambda: window.cameras(20))
    assert window._server.request_share_url() is None and window._server._share_tunnel is None
    client.socket.close()


@pytest.mark.parametrize(
    ("headers", "path"), [({"Host": "evil.example"}, None), ({"Origin": "http://evil.example"}, None), ({}, "/")]
)
def test_foreign_requests_are_forbidden(window: ViserWindow, headers: dict[str, str], path: str | None) -> None:
    place = urlsplit(window.url)
    for upgrade in ({}, {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}):
        all_headers = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **upgrade, **headers}
        connection = http.client.HTTPConnection(HOST, place.port, timeout=PATIENCE)
        connection.request("GET", path or place.path, headers=all_headers)
        answer = connection.getresponse()
        assert answer.status == 403 and b"viser" not in answer.read().lower()
        connection.close()
    assert window.cameras(20) == {}


@pytest.mark.parametrize("port", [0, 65_535])
def test_port_in_use_is_avoided_and_an_unprotected_server_refused(port: int, monkeypatch) -> None:
    with socket.socket() as other:
        other.bind((HOST, port))
        other.listen()
        port = other.getsockname()[1]
        window = ViserWindow(PROMPT, port, orbit(1, 0.25, 2.6, 0.7, 8, 8))
        window.close()
    assert urlsplit(window.url).port != port
    monkeypatch.setattr(viser_window, "_LocalServer", lambda *args, **options: None)
    with pytest.raises(RuntimeError, match=viser.__version__):
        ViserWindow("a dog", 0, orbit(1, 0.25, 2.6, 0.7, 8, 8))
