"""Studio in a real browser: from an empty prompt to a downloaded GLB. Needs playwright and a Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import asset_glb
from tests.support.studio import FAILURE, Client, finished_run, studio

pytestmark = pytest.mark.slow
STATE = "document.querySelector('.job:last-child .state')?.textContent"


@pytest.fixture
def client(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with studio(tmp_path, monkeypatch) as opened:
        yield opened


def test_prompt_becomes_a_download(chromium: Any, client: Client) -> None:
    tab = Tab(chromium, client.url)
    page = tab.page
    page.fill("#prompt", "a red corgi that waits")
    tab.until("document.querySelectorAll('.unknown').length > 0")
    page.click("#words .chip")
    assert page.input_value("#prompt") == "a red dog that waits"
    page.get_by_role("button", name="Generate", exact=True).click()
    tab.until(f"{STATE} === 'running' && document.querySelector('.told').textContent.includes('loss 12.5')")
    page.fill("#prompt", "a cat")
    page.keyboard.press("Enter")
    tab.until(f"{STATE} === 'waiting'")
    page.get_by_role("button", name="Remove", exact=True).click()
    tab.until("document.querySelectorAll('.job').length === 1")
    (client.root / "a-red-dog-that-waits-0.go").touch()
    tab.until("!document.querySelector('#shown').hidden && document.querySelectorAll('.card').length === 1")
    frame = page.frame_locator("#asset")
    frame.locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    with page.expect_download(timeout=PATIENCE) as download:
        frame.locator("#mesh").click()
    assert download.value.suggested_filename == "square.glb"
    assert Path(download.value.path()).read_bytes() == asset_glb((0, 0, 1))
    assert all(url.startswith((client.url, "data:", "blob:")) for url in tab.requests) and tab.errors == []


def test_job_can_be_stopped_and_its_error_is_shown(chromium: Any, client: Client) -> None:
    tab = Tab(chromium, client.url)
    tab.page.fill("#prompt", "a dog that waits")
    tab.page.get_by_role("button", name="Generate", exact=True).click()
    tab.until("document.querySelector('.told')?.textContent.includes('loss')")
    tab.page.get_by_role("button", name="Stop", exact=True).click()
    tab.until(f"{STATE} === 'interrupted'")
    assert tab.page.is_visible("[data-does=again]")
    tab.page.fill("#prompt", "it fails")
    tab.page.get_by_role("button", name="Generate", exact=True).click()
    tab.until(f"{STATE} === 'failed'")
    assert tab.page.text_content(".job:last-child .problem") == FAILURE


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_fits_the_window_and_opens_earlier_runs(chromium: Any, client: Client, width: int) -> None:
    prompt = "<script>document.title='ran'</script> " + "x" * 200
    finished_run(client.root / "one", prompt=prompt)
    tab = Tab(chromium, client.url, viewport={"width": width, "height": 800})
    tab.until("document.querySelectorAll('.card').length === 1")
    tab.page.click(".card a")
    tab.page.frame_locator("#asset").locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    assert tab.page.text_content("#shown-prompt") == prompt and tab.page.title() == "threedgen studio"
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.page.fill("#prompt", "y" * 300)
    tab.until("document.querySelectorAll('.unknown').length === 1")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width and tab.errors == []
