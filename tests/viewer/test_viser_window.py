"""The page of the live view, served by viser to a real client and to a real browser; skipped without viser."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import rich
import torch
from PIL import Image

viser = pytest.importorskip("viser")

import msgspec  # noqa: E402  viser needs these three
import websockets.sync.client  # noqa: E402
import zstandard  # noqa: E402

from tests.support.waiting import when  # noqa: E402
from threedgen.geometry.rigs import orbit  # noqa: E402
from threedgen.viewer import viser_window  # noqa: E402
from threedgen.viewer.local import HOST, free_port  # noqa: E402
from threedgen.viewer.viser_window import ViserWindow  # noqa: E402

PROMPT = "<b>a dog</b> ![x](http://example.com/x.png)"
PATIENCE = 60.0
"""Seconds: a busy machine draws slowly."""


@pytest.fixture
def window(capfd: pytest.CaptureFixture[str]) -> Iterator[ViserWindow]:
    """An open window; viser's own words must not be among the results on stdout."""
    made = ViserWindow(PROMPT, 0, orbit(1, 0.25, 2.6, 0.7, 8, 8))
    yield made
    made.close()
    made.close()
    assert capfd.readouterr().out == "" and not rich.get_console().quiet


class Client:
    """A page without a browser: it says where it looks from, keeps all messages, and presses buttons."""

    def __init__(self, url: str) -> None:
        self.messages: list[dict[str, Any]] = []
        self.socket = websockets.sync.client.connect(
            url.replace("http", "ws").rstrip("/"),
            subprotocols=[f"viser-v{viser.__version__}"], compression=None, max_size=None,
            origin="/".join(url.split("/")[:3]),  # as a browser has it
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Twice 8 bytes of sizes, the messages packed, then large arrays, of which we have none."""
        for data in self.socket:
            length = int.from_bytes(data[8:16], "little")
            self.messages += msgspec.msgpack.decode(zstandard.decompress(data[16 : 16 + length]))["messages"]

    def send(self, **message: Any) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def look(self, position: tuple[float, float, float], width: int = 300, height: int = 200) -> None:
        """From a place on the +y side, in the direction of -y: OpenCV's z is the world's -y, its y the world's -z."""
        self.send(
            type="ViewerCameraMessage",
            wxyz=(0.0, 0.0, 2**-0.5, -(2**-0.5)),
            position=position,
            fov=0.8,
            near=0.01,
            far=100.0,
            image_height=height,
            image_width=width,
            look_at=(0.0, 0.0, 0.0),
            up_direction=(0.0, 0.0, 1.0),
        )

    def has(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in list(self.messages) if message["type"] == kind]

    def press(self, label: str) -> None:
        buttons = when(lambda: [m for m in self.has("GuiButtonMessage") if m["props"]["label"] == label], label)
        self.send(type="GuiUpdateMessage", uuid=buttons[0]["uuid"], updates={"value": True})


def test_a_client_looks_sees_and_presses(window: ViserWindow) -> None:
    assert window.eyes() == [] and window.pressed() == set()
    client = Client(window.url)
    client.look((0.0, 2.5, 0.0))
    (eye,) = when(window.eyes, "somebody")
    camera = eye.camera(20)
    assert (camera.height, camera.width) == (20, 30) and float(camera.fov[0]) == pytest.approx(0.8)
    assert camera.position[0].tolist() == pytest.approx([0, 2.5, 0])
    directions = camera.rays()[1][0]
    assert directions.mean((0, 1))[::2].tolist() == pytest.approx([0, 0], abs=1e-5)
    assert float(directions[..., 1].max()) < 0 < float(directions[0, :, 2].min())  # the first row looks upwards
    assert float(directions[:, 0, 0].min()) > 0  # and the left is +x, seen from +y

    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :15] = (250, 20, 30)
    window.show(eye, picture)
    drawn = lambda: [m["rgb_data"] for m in client.has("BackgroundImageMessage") if m["rgb_data"]]  # noqa: E731
    shown = when(drawn, "the picture")[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")), picture)

    client.press("Export the asset")
    assert when(window.pressed) == {"export"} and window.pressed() == set()
    client.press("Stop the run")
    assert when(window.pressed) == {"stop"}
    client.socket.close()
    when(lambda: not window.eyes(), "the end")
    window.show(eye, picture)  # who has gone is no error


def test_figures_and_prompt_are_text(window: ViserWindow) -> None:
    client = Client(window.url)
    window.tell(0.25, ["step 3 of <i>12</i>", "loss 0.5"], busy=True)
    texts = lambda: "".join(str(m) for m in [*client.has("GuiHtmlMessage"), *client.has("GuiUpdateMessage")])  # noqa: E731
    when(lambda: "loss 0.5" in texts() and "a dog" in texts(), "the figures")
    assert "&lt;b&gt;a dog&lt;/b&gt;" in texts() and "step 3 of &lt;i&gt;12&lt;/i&gt;" in texts()
    assert "<b>" not in texts() and "<i>" not in texts()
    assert window._bar.value == 25 and all(button.disabled for button in window._buttons.values())
    client.socket.close()


def test_it_listens_on_this_machine_only(window: ViserWindow) -> None:
    assert window.url.startswith(f"http://{HOST}:") and window._server.get_host() == HOST == "127.0.0.1"
    with urllib.request.urlopen(window.url, timeout=PATIENCE) as answer:
        assert b"<html" in answer.read()
    with pytest.raises(OSError):  # another address of this machine, as from a network
        socket.create_connection(("127.0.0.2", window._server.get_port()), timeout=5)
    client = Client(window.url)
    client.send(type="ShareUrlRequest")  # what the share button of viser's own pages sends
    client.look((0.0, 2.5, 0.0))
    when(window.eyes)
    assert window._server.request_share_url() is None and window._server._share_tunnel is None
    client.socket.close()


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"Host": "evil.example"}, None),
        ({"Host": "127.0.0.1.evil.example"}, None),
        ({"Host": "[::1"}, None),
        ({"Origin": "http://evil.example"}, None),
        ({"Origin": "http://localhost:3000"}, None),
        ({"Origin": "null"}, None),
        ({}, "/"),
        ({}, "/index.html"),
        ({}, "/wrong/"),
        ({}, "/%C3%A9/"),
    ],
)
def test_nobody_else_gets_in(window: ViserWindow, headers: dict[str, str], path: str | None) -> None:
    place = urlsplit(window.url)
    for upgrade in ({}, {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}):
        asked = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **upgrade, **headers}
        connection = http.client.HTTPConnection(HOST, place.port, timeout=PATIENCE)
        connection.request("GET", path or place.path, headers=asked)
        answer = connection.getresponse()
        assert answer.status == 403 and b"viser" not in answer.read().lower()
        connection.close()
    assert window.eyes() == []


def test_a_tunnel_may_have_another_port(window: ViserWindow) -> None:
    place = urlsplit(window.url)
    for host in ("localhost:9000", "127.0.0.1:9000", "[::1]:9000"):
        connection = http.client.HTTPConnection(HOST, place.port, timeout=PATIENCE)
        connection.request("GET", place.path, headers={"Host": host, "Origin": f"http://{host}"})
        assert connection.getresponse().status == 200
        connection.close()


def test_a_viser_that_serves_otherwise_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viser_window, "_Local", lambda *words, **options: None)
    with pytest.raises(RuntimeError, match="cannot be guarded"):
        ViserWindow("a dog", 0, orbit(1, 0.25, 2.6, 0.7, 8, 8))


def test_a_port_that_is_taken_is_another_port() -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert free_port(taken) == 0
        window = ViserWindow("a dog", taken, orbit(1, 0.25, 2.6, 0.7, 8, 8))
        try:
            assert urlsplit(window.url).port not in (taken, 0)
        finally:
            window.close()
    assert free_port(taken) == taken
    with pytest.raises(OSError):
        urllib.request.urlopen(window.url, timeout=5)


@pytest.mark.slow
def test_the_page_in_a_browser(launched: Any, window: ViserWindow, tmp_path: Path) -> None:
    """It shows the picture, presses the button, and asks nobody else for anything."""
    page = launched.new_page(viewport={"width": 900, "height": 600})
    page.set_default_timeout(1000 * PATIENCE)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(window.url, timeout=1000 * PATIENCE)

    def wait(condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < end, f"{what} never happened"
            page.wait_for_timeout(100)
        return found

    def red() -> float:
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), int)
        return float(((shot[..., 0] > 200) & (shot[..., 1:].max(-1) < 80)).mean())

    begin = orbit(1, 0.25, 2.6, 0.7, 8, 8).c2w[0]
    # a page's first message tells of a camera of its own, before it has heard of ours
    (eye,) = wait(lambda: [e for e in window.eyes() if torch.allclose(e.c2w, begin, atol=1e-3)], "the first view")
    assert eye.aspect == pytest.approx(1.5, abs=0.01) and red() < 0.01
    window.show(eye, np.full((32, 48, 3), (250, 20, 30), np.uint8))
    window.tell(0.25, ["distilling at 64 px: step 25 of 100", "loss 0.5"], busy=False)
    wait(lambda: red() > 0.5, "the picture")
    assert page.get_by_text(PROMPT).is_visible() and page.get_by_text("step 25 of 100").is_visible()
    page.get_by_text("Export the asset").click()
    assert wait(window.pressed, "the button") == {"export"}
    page.mouse.move(200, 400)
    page.mouse.down()
    page.mouse.move(300, 420, steps=4)
    page.mouse.up()
    turned = wait(lambda: [e for e in window.eyes() if (e.c2w - eye.c2w).abs().max() > 0.05], "the turn")[0]
    distance = turned.camera(8).c2w[0, :3, 3].norm()
    assert float(distance) == pytest.approx(2.6, rel=0.01)  # it turned around the middle
    page.screenshot(path=tmp_path / "live.png")
    outside = [url for url in requests if not url.startswith((window.url, "data:", "blob:"))]
    assert outside == []
    page.close()
