from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import asset_glb
from tests.support.studio import FAILURE, Client, finished_run, studio

pytestmark = pytest.mark.slow
STATE = "document.querySelector('.job:last-child .state')?.textContent"
FINISHED = "[...document.querySelectorAll('.job .state')].every((state) => state.textContent === 'finished')"
CARDS = "document.querySelectorAll('.card').length"


@pytest.fixture
def client(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with studio(tmp_path, monkeypatch) as opened:
        yield opened


def press(tab: Tab, name: str) -> None:
    tab.page.get_by_role("button", name=name, exact=True).first.click()


def test_prompt_becomes_a_download(chromium: Any, client: Client) -> None:
    tab = Tab(chromium, client.url)
    page = tab.page
    page.fill("#prompt", "a red corgi that waits")
    tab.until("document.querySelectorAll('.unknown').length > 0")
    page.click("#words .chip")
    assert page.input_value("#prompt") == "a red dog that waits"
    press(tab, "Generate")
    tab.until(f"{STATE} === 'running' && document.querySelector('.status').textContent.includes('25 %, 6 s left')")
    page.fill("#prompt", "a cat")
    page.keyboard.press("Enter")
    tab.until(f"{STATE} === 'waiting'")
    press(tab, "Remove")
    tab.until("document.querySelectorAll('.job').length === 1")
    (client.root / "a-red-dog-that-waits-0.go").touch()
    tab.until(f"!document.querySelector('#shown').hidden && {CARDS} === 1")
    frame = page.frame_locator("#viewers iframe")
    frame.locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    with page.expect_download(timeout=PATIENCE) as download:
        page.click(".downloads a")
    assert download.value.suggested_filename == "square.glb"
    assert Path(download.value.path()).read_bytes() == asset_glb((0, 0, 1))
    assert all(url.startswith((client.url, "data:", "blob:")) for url in tab.requests) and tab.errors == []


def test_job_can_be_stopped_and_its_error_is_shown(chromium: Any, client: Client) -> None:
    tab = Tab(chromium, client.url)
    tab.page.fill("#prompt", "a dog that waits")
    press(tab, "Generate")
    tab.until("document.querySelector('.status')?.textContent.includes('left')")
    press(tab, "Stop")
    tab.until(f"{STATE} === 'cancelled' && {CARDS} === 0")
    press(tab, "Finish now")
    tab.until(f"{STATE} === 'finished' && {CARDS} === 1")
    tab.page.fill("#prompt", "it fails")
    press(tab, "Generate")
    tab.until(f"{STATE} === 'failed'")
    assert tab.page.text_content(".job:last-child .problem") == FAILURE


def test_variations_words_and_comparison(chromium: Any, client: Client) -> None:
    finished_run(client.root / "one", prompt="a dog")
    finished_run(client.root / "two", prompt="a cat")
    tab = Tab(chromium, client.url, reduced_motion="reduce")  # scrolling moves what is clicked
    tab.page.click("#browse summary")
    tab.until("document.querySelectorAll('#vocabulary .chip').length > 90")
    for word in ("owl", "orange", "hat", "dog"):
        tab.page.click(f"#vocabulary .chip >> text='{word}'")
    assert tab.page.input_value("#prompt") == "an orange dog wearing a hat"
    press(tab, "Four variations")
    tab.until("document.querySelectorAll('.job').length === 4")
    tab.until(f"{CARDS} === 6")
    tab.until(FINISHED)  # a job that ends shows its object, in place of those that are shown
    tab.page.click(".card a")
    tab.page.locator(".card").nth(1).get_by_role("button", name="Compare").dispatch_event("click")
    tab.until("document.querySelectorAll('#viewers article').length === 2")
    tab.page.locator(".card").first.get_by_role("button", name="Change").click()
    assert tab.page.input_value("#prompt") == tab.page.text_content(".card .prompt")
    tab.page.fill("#prompt", "a purple owl")
    press(tab, "Generate")
    tab.until(f"{CARDS} === 7 && {FINISHED}")
    tab.page.dispatch_event("#files .chip", "click")
    assert tab.page.text_content("#files") == ""
    tab.page.on("dialog", lambda dialog: dialog.accept())
    press(tab, "Delete")
    tab.until(f"{CARDS} === 6")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_fits_the_window_and_opens_earlier_runs(chromium: Any, client: Client, width: int) -> None:
    prompt = "<script>document.title='ran'</script> " + "x" * 200
    finished_run(client.root / "one", prompt=prompt)
    tab = Tab(chromium, client.url, viewport={"width": width, "height": 800})
    tab.until(f"{CARDS} === 1")
    tab.page.click(".card a")
    tab.page.frame_locator("#viewers iframe").locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    assert tab.page.text_content("#viewers h3") == prompt and tab.page.title() == "threedgen studio"
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.page.fill("#prompt", "y" * 300)
    tab.until("document.querySelectorAll('.unknown').length === 1")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width and tab.errors == []
