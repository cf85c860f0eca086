"""A headless Chromium for the tests of pages, by playwright; they are skipped where either is missing."""

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",  # no graphics card is needed
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE = 300_000  # milliseconds: a busy machine draws slowly


@pytest.fixture(scope="module")
def launched() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        path = own if Path(own).exists() else next(filter(None, map(shutil.which, names)), None)
        if path is None:
            pytest.skip("no Chromium here")
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def chromium(launched: Any) -> Iterator[Any]:
    """The same, without the pages of the test before: their films would go on playing."""
    yield launched
    for context in launched.contexts:
        context.close()


class Tab:
    """A page in the browser, and everything that it asked for or complained of."""

    def __init__(self, browser: Any, address: Path | str, **options: Any) -> None:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}} | options)
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.goto(address.as_uri() if isinstance(address, Path) else address, timeout=PATIENCE)

    def outside(self) -> list[str]:
        """Requests for anything but the page itself and its own data."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]

    def drawn(self, after: int = 0) -> int:
        """Waits until the viewer has drawn more than `after` pictures; how many there are."""
        self.until(f"Number(document.querySelector('#view').dataset.drawn || 0) > {after}")
        return int(self.page.get_attribute("#view", "data-drawn"))

    def until(self, expression: str) -> None:
        """Waits for a JavaScript expression to be true; the page's policy forbids playwright's own way of waiting."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            self.page.wait_for_timeout(50)

    def click(self, place: Any) -> None:
        """Clicks an element, a locator of playwright or the first one of a selector, when the mouse is over it.

        Chromium gives the mouse to the frame that is under it in the last picture of the page. While a frame starts
        WebGL there is no new picture, and a click after a scroll may go to that frame instead.
        """
        place = self.page.locator(place).first if isinstance(place, str) else place
        end = time.monotonic() + PATIENCE / 1000
        place.hover()
        while not place.evaluate("element => element.matches(':hover')"):
            assert time.monotonic() < end, f"the mouse never gets to {place}"
            self.page.wait_for_timeout(50)
            place.hover()
        place.click()

    def picture(self) -> np.ndarray:
        """The 3D view as it is on the screen above its buttons, (H, W, 3), when two pictures of it agree."""
        self.drawn()
        last = None
        for _ in range(20):
            box = self.page.locator("#view").bounding_box()
            box["height"] -= 60
            shot = self.page.screenshot(clip=box, timeout=PATIENCE)
            now = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float)
            if last is not None and now.shape == last.shape and np.array_equal(now, last):
                return now
            last = now
        raise AssertionError("the view does not come to rest")
