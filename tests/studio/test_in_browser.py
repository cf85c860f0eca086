import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.axe import violations
from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import asset_glb
from tests.support.studio import FAILURE, Client, finished_run, studio
from threedgen.studio.schema import AssetOrder

pytestmark = pytest.mark.slow
STATE = "document.querySelector('.job:last-child .state')?.textContent"
FINISHED = "[...document.querySelectorAll('.job .state')].every((state) => state.textContent === 'finished')"
CARDS = "document.querySelectorAll('.card').length"


@pytest.fixture
def client(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with studio(tmp_path, monkeypatch) as opened:
        yield opened


def press(tab: Tab, name: str) -> None:
    tab.click(tab.page.get_by_role("button", name=name, exact=True).first)


def test_suggestion_replaces_a_word_with_an_accent_and_an_error_is_shown(chromium: Any, client: Client) -> None:
    tab = Tab(chromium, client.url)
    tab.page.fill("#prompt", "an e\u0301lephant that waits")
    tab.until("document.querySelectorAll('.unknown').length > 0")
    tab.click("#words .chip")
    assert tab.page.input_value("#prompt") == "an elephant that waits"
    tab.page.fill("#prompt", "it fails")
    press(tab, "Generate")
    tab.until(f"{STATE} === 'failed'")
    assert tab.page.text_content(".job:last-child .problem") == FAILURE


def test_prompt_of_chosen_words_and_an_edit(chromium: Any, client: Client) -> None:
    finished_run(client.root / "one", prompt="a dog")
    tab = Tab(chromium, client.url, reduced_motion="reduce")  # scrolling moves what is clicked
    tab.click("#browse summary")
    tab.until("document.querySelectorAll('#vocabulary .chip').length > 90")
    for word in ("owl", "orange", "hat", "dog"):
        tab.click(f"#vocabulary .chip >> text='{word}'")
    assert tab.page.input_value("#prompt") == "an orange dog wearing a hat"
    tab.until(f"{CARDS} === 1")
    tab.click(tab.page.locator(".card").first.get_by_role("button", name="Change"))
    assert tab.page.input_value("#prompt") == tab.page.text_content(".card .prompt")
    tab.page.fill("#prompt", "a purple owl")
    press(tab, "Generate")
    tab.until(f"{CARDS} === 2 && {FINISHED}")
    tab.page.dispatch_event("#files .chip", "click")
    assert tab.page.text_content("#files") == ""


@pytest.mark.parametrize("width", [320, 1280])
def test_page_fits_the_window_and_opens_earlier_runs(chromium: Any, client: Client, width: int) -> None:
    prompt = "<script>document.title='ran'</script> " + "x" * 200
    finished_run(client.root / "one", prompt=prompt)
    tab = Tab(chromium, client.url, viewport={"width": width, "height": 800})
    tab.until(f"{CARDS} === 1")
    tab.click(".card a")
    tab.page.frame_locator("#viewers iframe").locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    assert tab.page.text_content("#viewers h3") == prompt and tab.page.title() == "threedgen studio"
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.page.fill("#prompt", "y" * 300)
    tab.until("document.querySelectorAll('.unknown').length === 1")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width and tab.errors == []


def test_from_an_empty_page_to_all_that_it_can_do(chromium: Any, client: Client, tmp_path: Path) -> None:
    """One visit: prompt, variations, stop, finish, comparison, files of the user, deletion; at last at 390 pixels."""
    tab = Tab(chromium, client.url, viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page, problems = tab.page, []
    pictures = Path(os.environ.get("PICTURES", tmp_path))

    def look(name: str) -> None:
        page.screenshot(path=pictures / f"{name}.png", full_page=True, timeout=PATIENCE)
        problems.extend(f"{name}: {rule}" for rule in violations(page))

    def shown(name: str) -> bool:
        return bool(page.locator(name).is_visible())

    def drop(name: str, data: bytes) -> None:
        script = """([name, data]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], name));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }"""
        page.evaluate(script, [name, list(data)])

    def sent(name: str = "Generate") -> dict[str, Any]:
        with page.expect_request(lambda request: request.url.endswith("/jobs"), timeout=PATIENCE) as request:
            press(tab, name)
        return dict(request.value.post_data_json)

    tab.until("document.querySelectorAll('#nouns .chip').length > 3")
    look("1-empty")
    tab.click("#browse summary")
    tab.click(".options summary")
    tab.until("document.querySelectorAll('#vocabulary .chip').length > 90")
    look("2-words-and-options")
    tab.click("#browse summary")

    # stop within two seconds, then the asset of what there is
    page.fill("#prompt", "a dog that waits")
    page.fill("#order [name=height]", "0.5")
    assert sent() == {"prompt": "a dog that waits", "seed": 0, "export": {"height": 0.5}}
    tab.until("document.querySelector('.status')?.textContent.includes('6 s left')")
    look("3-running")
    start = time.monotonic()
    press(tab, "Stop")
    tab.until(f"{STATE} === 'cancelled'")
    assert time.monotonic() - start < 2.5 and page.locator(".card").count() == 0
    press(tab, "Finish now")
    tab.until(f"{STATE} === 'finished' && {CARDS} === 1")
    page.frame_locator("#viewers iframe").locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    look("4-finished")

    # four variations side by side, and four more of a kind
    page.fill("#prompt", "a red cat")
    press(tab, "Four variations")
    tab.until(f"document.querySelectorAll('.job').length === 5 && {FINISHED}")
    tops = [page.locator(".job").nth(number).bounding_box() for number in range(1, 5)]
    assert len({round(box["y"]) for box in tops}) <= 2 and len({round(box["x"]) for box in tops}) > 1, "side by side"
    tab.click(page.locator(".job").last.get_by_role("button", name="More like this"))
    tab.until(f"document.querySelectorAll('.job').length === 9 && {FINISHED} && {CARDS} === 9")
    seeds = sorted(job.seed for job in client.queue.jobs() if job.prompt == "a red cat")
    assert seeds == [0, 1, 2, 3, 4, 5, 6, 7]
    look("5-variations")

    # compare two, delete one
    tab.click(".card a")
    tab.click(page.locator(".card").nth(3).get_by_role("button", name="Compare"))
    tab.until("document.querySelectorAll('#viewers article').length === 2")
    for frame in (0, 1):
        page.frame_locator("#viewers iframe").nth(frame).locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    look("6-comparison")
    page.on("dialog", lambda dialog: dialog.accept())
    tab.click(page.locator(".card").last.get_by_role("button", name="Delete"))
    tab.until(f"{CARDS} === 8")

    # files: what has no effect is hidden and is not sent
    page.fill("#prompt", "a wooden chair")
    drop("photo.png", b"an image")
    tab.until("document.querySelector('#files .chip')")
    assert not shown("#prompt") and not shown("#words") and shown("#order [name=height]") and shown("#seed")
    look("7-image")
    order = sent()
    assert set(order) == {"seed", "export", "image"} and order["image"].endswith("-photo.png")
    drop("chair.glb", asset_glb((0, 0, 1)))
    tab.until("document.querySelectorAll('#files .chip').length === 2")
    tab.click(page.locator("#files .chip").first)
    assert shown("#prompt") and not shown("#order [name=height]") and shown("#seed")
    look("8-mesh")
    order = sent()
    assert set(order) == {"prompt", "seed", "mesh"} and order["prompt"] == "a wooden chair"
    tab.click(page.locator("#files .chip").first)
    assert shown("#prompt") and shown("#order [name=height]")
    page.locator(".job").filter(has_text="a wooden chair").wait_for(timeout=PATIENCE)
    tab.until(FINISHED)
    tab.click(page.locator(".job").filter(has_text="from a file").get_by_role("button", name="Show"))
    tab.until("document.querySelector('#viewers h3')?.textContent === 'from a file'")

    page.frame_locator("#viewers iframe").locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    look("9-390-pixels")
    with page.expect_download(timeout=PATIENCE) as download:
        tab.click(".downloads a")
    assert Path(download.value.path()).read_bytes() == asset_glb((0, 0, 1))
    page.goto(f"{client.url}api/v1/", timeout=PATIENCE)
    look("10-api")
    assert problems == [] and tab.errors == []


def test_3d_view_is_accessible_and_its_asset_is_exported_again(chromium: Any, client: Client) -> None:
    finished_run(client.root / "one")
    tab = Tab(chromium, client.url, reduced_motion="reduce")
    page = tab.page
    tab.until(f"{CARDS} === 1")
    tab.click(".card a")
    orders: list[dict[str, Any]] = []

    def answer(route: Any) -> None:  # a real job would show its result instead
        orders.append(route.request.post_data_json)
        route.fulfill(status=201, json={})

    page.route("**/export", answer)
    tab.click("#viewers summary")
    page.select_option("#viewers [name=collision]", "parts")
    for levels in ("1000, 300", "0", ""):
        page.fill("#viewers [name=lods]", levels)
        press(tab, "Export")
        page.wait_for_timeout(1000)
    assert orders == [{"collision": "parts", "lods": [1000, 300]}, {"collision": "parts", "lods": []},
                      {"collision": "parts"}]  # fmt: skip
    for order in orders:
        AssetOrder.model_validate(order)
    page.frame_locator("#viewers iframe").locator("#view[data-drawn]").wait_for(timeout=PATIENCE)
    assert violations(page) == []
