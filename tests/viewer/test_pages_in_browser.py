import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.axe import violations
from tests.support.browser import PATIENCE, Tab
from tests.support.example_run import asset_glb, box_glb, example
from threedgen import cli
from threedgen.viewer.report import write_report

pytestmark = pytest.mark.slow


def colourful(image: np.ndarray) -> float:
    """Return the fraction of saturated pixels: neither background nor button."""
    return float((np.ptp(image, axis=2) > 60).mean())


SAME = 0.01
"""Fraction of pixels that may differ between two pictures of one view."""


def changed(one: np.ndarray, other: np.ndarray) -> float:
    return float((np.abs(one - other).max(axis=2) > 16).mean())


def near(image: np.ndarray, colour: tuple[int, ...], tolerance: int = 8) -> float:
    return float((np.abs(image - colour).max(axis=2) < tolerance).mean())


def make_report(folder: Path, **config: Any) -> Path:
    return write_report(example(folder, **config))


def test_asset_is_rendered_and_follows_gestures(chromium: Any, tmp_path: Path) -> None:
    tab = Tab(chromium, make_report(tmp_path / "run"))
    first = tab.picture()
    assert colourful(first) > 0.05 and colourful(first[:8]) == 0
    box = tab.page.locator("#view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def settles(shown: Callable[[np.ndarray], bool]) -> np.ndarray:
        """The picture for which `shown` is true: an action draws when the browser gets to it, maybe several times."""
        end = time.monotonic() + PATIENCE / 1000
        while not shown(now := tab.picture()):
            assert time.monotonic() < end
        return now

    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + 90, y + 30, steps=3)
    tab.page.mouse.up()
    settles(lambda now: changed(first, now) > 0.02)
    tab.page.mouse.dblclick(x, y)
    settles(lambda now: changed(first, now) < SAME)
    tab.page.mouse.wheel(0, -200)
    settles(lambda now: colourful(now) > 1.2 * colourful(first))
    tab.page.mouse.dblclick(x, y)
    settles(lambda now: changed(first, now) < SAME)
    tab.page.focus("#view")
    tab.page.keyboard.press("Home")  # shows the ring of focus
    focused = tab.picture()
    tab.page.keyboard.press("ArrowLeft")
    settles(lambda now: changed(focused, now) > 0.02)
    tab.page.keyboard.press("Home")
    settles(lambda now: changed(focused, now) < SAME)
    for name in ("Colour", "Normals", "Wireframe"):
        tab.page.get_by_role("button", name=name).click()
        settles(lambda now: changed(first, now) > 0.005)
    assert tab.outside() == [] and tab.errors == []


def test_video_plays_and_mesh_can_be_downloaded(chromium: Any, tmp_path: Path) -> None:
    tab = Tab(chromium, make_report(tmp_path / "run"))
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


def test_texture_is_mapped_correctly(chromium: Any, tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (run / "mesh.glb").write_bytes(box_glb(textured=True))
    tab = Tab(chromium, write_report(run))
    tab.drawn()
    tab.page.get_by_role("button", name="Colour").click()
    for _ in range(20):  # the texture is loaded after the first frame
        image = tab.picture()
        if near(image, (0, 0, 255)):
            break
    # visible: the sides +x and +z, red in the upper row of the texture, and +y, blue in the lower row
    assert near(image, (255, 0, 0)) > 0.01 and near(image, (0, 0, 255)) > 0.01
    assert max(near(image, (0, 255, 0)), near(image, (255, 255, 0))) < 0.001 and tab.errors == []


def asset_in_mode(chromium: Any, folder: Path, asset: bytes, mode: str) -> Tab:
    """Return the report of a run with an asset, shown in a mode."""
    run = example(folder / "run")
    (run / "asset").mkdir()
    (run / "asset" / "square.glb").write_bytes(asset)
    (run / "asset" / "asset.json").write_text('{"files": {"square.glb": 1}}')
    tab = Tab(chromium, write_report(run))
    tab.drawn()
    tab.page.get_by_role("button", name=mode).click()
    return tab


@pytest.mark.parametrize(
    ("bump", "colour"),
    [((0.6, 0, 0.8), (204, 128, 230)), ((0, 0.6, 0.8), (128, 204, 230))],
    ids=["to-the-right", "upwards"],
)
def test_normal_map_is_applied(chromium: Any, tmp_path: Path, bump: tuple, colour: tuple) -> None:
    """On a square that faces the camera, red of the normal map points right and green points up."""
    tab = asset_in_mode(chromium, tmp_path, asset_glb(bump), "Normals")
    for _ in range(20):  # the textures are loaded after the first frame
        if (fraction := near(tab.picture(), colour, 6)) > 0.1:
            break
    assert fraction > 0.1 and tab.outside() == [] and tab.errors == []


def test_missing_webgl_or_javascript_is_reported(chromium: Any, tmp_path: Path) -> None:
    path = make_report(tmp_path / "run")
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE)
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page = context.new_page()
    page.goto(path.as_uri(), timeout=PATIENCE)
    assert "WebGL 2" in page.text_content("#message")
    assert page.is_visible("#message") and not page.is_visible("#view") and not page.is_visible("#modes")
    scriptless = Tab(chromium, path, java_script_enabled=False)
    assert "JavaScript" in scriptless.page.text_content("#message") and scriptless.page.is_visible("#message")


def test_gallery_filter(chromium: Any, tmp_path: Path) -> None:
    for name in ("a red cat", "a blue cat", "a blue dog"):
        make_report(tmp_path / name.replace(" ", "-"), prompt=name)
    assert cli.main(["--config", "gallery", f"runs={tmp_path}"]) == 0
    tab = Tab(chromium, tmp_path / "gallery.html")

    def visible_prompts() -> list[str]:
        return sorted(tab.page.locator(".card:visible .prompt").all_text_contents())

    assert len(visible_prompts()) == 3
    tab.page.fill("#filter", "CAT blue")
    assert visible_prompts() == ["a blue cat"] and tab.page.text_content("#count") == "1 of 3 runs"
    tab.page.fill("#filter", "nothing")
    assert visible_prompts() == []
    tab.page.fill("#filter", " ")
    assert len(visible_prompts()) == 3 and tab.page.text_content("#count") == "3 runs"
    tab.page.click(".card:visible a")
    tab.page.wait_for_selector("#view")
    assert tab.page.url.endswith("/report.html") and tab.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_and_gallery_are_accessible(chromium: Any, tmp_path: Path, scheme: str) -> None:
    report = make_report(tmp_path / "run")
    assert cli.main(["--config", "gallery", f"runs={tmp_path}"]) == 0
    tab = Tab(chromium, report, color_scheme=scheme)
    tab.drawn()
    assert violations(tab.page) == []
    tab = Tab(chromium, tmp_path / "gallery.html", color_scheme=scheme)
    assert violations(tab.page) == []
