"""The pages in a real browser: no request, the asset is drawn and turns. Needs playwright and a Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import asset_glb, box_glb, example
from threedgen import cli
from threedgen.viewer.report import write_report

pytestmark = pytest.mark.slow


def colourful(picture: np.ndarray) -> float:
    """The share of pixels that are neither the page's paper nor a button."""
    return float((np.ptp(picture, axis=2) > 60).mean())


def changed(one: np.ndarray, other: np.ndarray) -> float:
    """The share of pixels that differ."""
    return float((np.abs(one - other).max(axis=2) > 16).mean())


def report_of(folder: Path, **changes: Any) -> Path:
    return write_report(example(folder, **changes))


def test_the_asset_is_drawn_and_turns(chromium: Any, tmp_path: Path) -> None:
    tab = Tab(chromium, report_of(tmp_path / "run"))
    first = tab.picture()
    assert colourful(first) > 0.05 and colourful(first[:8]) == 0
    box = tab.page.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def after(action: Any) -> np.ndarray:
        count = tab.drawn()
        action()
        seen = tab.drawn(count)
        tab.page.wait_for_timeout(300)
        while (now := tab.drawn()) > seen:  # one action may draw several times
            seen = now
            tab.page.wait_for_timeout(300)
        return tab.picture()

    def drag() -> None:
        tab.page.mouse.move(x, y)
        tab.page.mouse.down()
        tab.page.mouse.move(x + 90, y + 30, steps=3)
        tab.page.mouse.up()

    turned = after(drag)
    assert changed(first, turned) > 0.02
    assert np.array_equal(after(lambda: tab.page.mouse.dblclick(x, y)), first)
    near = after(lambda: tab.page.mouse.wheel(0, -200))
    assert colourful(near) > 1.2 * colourful(first)
    after(lambda: tab.page.mouse.dblclick(x, y))
    tab.page.focus("#view")
    focused = after(lambda: tab.page.keyboard.press("Home"))
    assert changed(focused, after(lambda: tab.page.keyboard.press("ArrowLeft"))) > 0.02
    assert np.array_equal(after(lambda: tab.page.keyboard.press("Home")), focused)
    for name in ("Colour", "Normals", "Wires"):
        other = after(lambda name=name: tab.page.get_by_role("button", name=name).click())
        assert changed(first, other) > 0.005, name
    assert tab.outside() == [] and tab.errors == []


def test_the_film_plays_and_the_mesh_can_be_saved(chromium: Any, tmp_path: Path) -> None:
    tab = Tab(chromium, report_of(tmp_path / "run"))
    tab.drawn()
    tab.until("document.querySelector('#film').currentTime > 0")
    assert tab.page.evaluate("document.querySelector('#film').loop && document.querySelector('#frames').hidden")
    tab.page.click("#film")
    assert tab.page.evaluate("document.querySelector('#film').paused")
    tab.page.keyboard.press(" ")
    assert not tab.page.evaluate("document.querySelector('#film').paused")
    with tab.page.expect_download(timeout=PATIENCE) as download:
        tab.page.click("#mesh")
    assert download.value.suggested_filename == "mesh.glb"
    assert Path(download.value.path()).read_bytes() == box_glb()
    assert tab.outside() == [] and tab.errors == []


def test_a_texture_is_on_the_asset(chromium: Any, tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (run / "mesh.glb").write_bytes(box_glb(textured=True))
    tab = Tab(chromium, write_report(run))
    tab.drawn()
    tab.page.get_by_role("button", name="Colour").click()

    def share(colour: tuple[int, int, int]) -> float:
        return float((np.abs(picture - colour).max(axis=2) < 8).mean())

    for _ in range(20):  # the texture comes a moment after the first picture
        picture = tab.picture()
        if share((0, 0, 255)):
            break
    # the camera sees the sides +x and +z, red in the texture's upper row, and +y, blue in its lower one
    assert share((255, 0, 0)) > 0.01 and share((0, 0, 255)) > 0.01
    assert max(share((0, 255, 0)), share((255, 255, 0))) < 0.001 and tab.errors == []


@pytest.mark.parametrize(
    ("bump", "seen"),
    [((0, 0, 1), (128, 128, 255)), ((0.6, 0, 0.8), (204, 128, 230)), ((0, 0.6, 0.8), (128, 204, 230))],
    ids=["flat", "to-the-right", "upwards"],
)
def test_the_normal_map_of_the_asset_is_seen(chromium: Any, tmp_path: Path, bump: tuple, seen: tuple) -> None:
    """A square that faces the camera: red of its normal map leans to the right of the page, green upwards."""
    run = example(tmp_path / "run")
    (run / "asset").mkdir()
    (run / "asset" / "square.glb").write_bytes(asset_glb(bump))
    (run / "asset" / "asset.json").write_text('{"files": {"square.glb": 1}}')
    tab = Tab(chromium, write_report(run))
    tab.drawn()
    tab.page.get_by_role("button", name="Normals").click()
    for _ in range(20):  # the maps come a moment after the first picture
        picture = tab.picture()
        share = float((np.abs(picture - seen).max(axis=2) < 6).mean())
        if share > 0.1:
            break
    assert share > 0.1 and tab.outside() == [] and tab.errors == []


def test_frames_take_the_place_of_a_film_that_does_not_play(chromium: Any, tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (run / "turntable.mp4").write_bytes(b"no film")
    tab = Tab(chromium, write_report(run))
    tab.until("!document.querySelector('#frames').hidden")
    size, colours = tab.page.evaluate(
        "(() => { const c = document.querySelector('#frames'); const p = c.getContext('2d');"
        " return [[c.width, c.height], [...new Set(p.getImageData(0, 0, 32, 32).data)].length] })()"
    )
    assert size == [32, 32] and colours > 2
    assert not tab.page.is_visible("#film")


def test_a_mesh_that_cannot_be_read_is_said(chromium: Any, tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (run / "mesh.glb").write_bytes(b"no mesh")
    tab = Tab(chromium, write_report(run))
    tab.page.wait_for_selector("#message:not([hidden])")
    assert "The asset cannot be shown: it is no GLB of version 2." in tab.page.text_content("#message")
    assert tab.errors == []


def test_without_webgl_it_says_so(chromium: Any, tmp_path: Path) -> None:
    path = report_of(tmp_path / "run")
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE)
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page = context.new_page()
    page.goto(path.as_uri(), timeout=PATIENCE)
    assert "does not offer WebGL 2" in page.text_content("#message")
    assert page.is_visible("#message") and not page.is_visible("#view") and not page.is_visible("#modes")
    scriptless = Tab(chromium, path, java_script_enabled=False)
    assert "needs JavaScript" in scriptless.page.text_content("#message") and scriptless.page.is_visible("#message")


def test_a_script_in_the_prompt_does_not_run(chromium: Any, tmp_path: Path) -> None:
    """Even if it came into the page: the policy runs our scripts only."""
    prompt = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"
    path = report_of(tmp_path / "run", prompt=prompt)
    tab = Tab(chromium, path)
    tab.drawn()
    assert tab.page.text_content("h1") == prompt and tab.page.title() != "ran" and tab.errors == []
    path.write_text(path.read_text(encoding="utf-8").replace("</h1>", f"</h1>{prompt}"), encoding="utf-8")
    tab = Tab(chromium, path)
    tab.drawn()
    assert tab.page.title() != "ran" and any("Content Security Policy" in error for error in tab.errors)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out_of_the_page(chromium: Any, tmp_path: Path, width: int) -> None:
    prompt = "a blue dog " * 20 + "x" * 200
    tab = Tab(chromium, report_of(tmp_path / "run", prompt=prompt), viewport={"width": width, "height": 800})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert cli.main(["--config", "gallery", f"runs={tmp_path}"]) == 0
    tab = Tab(chromium, tmp_path / "gallery.html", viewport={"width": width, "height": 800})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_filter_of_the_gallery(chromium: Any, tmp_path: Path) -> None:
    for name in ("a red cat", "a blue cat", "a blue dog"):
        report_of(tmp_path / name.replace(" ", "-"), prompt=name)
    assert cli.main(["--config", "gallery", f"runs={tmp_path}"]) == 0
    tab = Tab(chromium, tmp_path / "gallery.html")

    def shown() -> list[str]:
        return sorted(tab.page.locator(".card:visible .prompt").all_text_contents())

    assert len(shown()) == 3
    tab.page.fill("#filter", "CAT blue")
    assert shown() == ["a blue cat"] and tab.page.text_content("#count") == "1 of 3 runs"
    tab.page.fill("#filter", "nothing")
    assert shown() == []
    tab.page.fill("#filter", " ")
    assert len(shown()) == 3 and tab.page.text_content("#count") == "3 runs"
    tab.page.click(".card:visible a")
    tab.page.wait_for_selector("#view")
    assert tab.page.url.endswith("/report.html") and tab.errors == []
