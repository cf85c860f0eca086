import io
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.support.example_run import Page, decoded, example
from threedgen import cli
from threedgen.geometry.images import SHEET_GAP
from threedgen.viewer.gallery import NAME
from threedgen.viewer.local import path_after_key
from threedgen.viewer.report import PAGE, write_report


def ended_on(day: int) -> dict[str, str]:
    return {"ended": f"2020-03-{day:02d}T12:00:00+00:00"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folder with runs in every state at several depths, other tasks, and damaged runs."""
    folder = tmp_path / "outputs"
    for day, name in enumerate(("config/a-cat", "config/a-dog", "a bird #1?"), 1):
        write_report(example(folder / name, ended_on(day), prompt=name.rpartition("/")[2]))
    interrupted = ended_on(4) | {"status": "interrupted", "steps": 5}
    example(folder / "evaluation/objects/a-fish", interrupted, prompt="a fish")
    (folder / "evaluation/config.yaml").write_text("task: evaluate-3d\n")
    (folder / "config/config.yaml").write_text("theme: of another program\n")
    example(folder / "failed", ended_on(5) | {"status": "failed", "reason": "not finite"}, prompt="<b>a wolf</b>")
    running = example(folder / "running", prompt="a horse")
    (running / "summary.json").unlink()
    (running / "views.png").unlink()
    for name, file, text in (
        ("sample", "config.yaml", "task: sample\nprompt: a cow\n"),
        ("damaged", "summary.json", "{"),
        ("unreadable", "config.yaml", "task: ["),
    ):
        (example(folder / name) / file).write_text(text)
    (folder / "empty").mkdir()
    return folder


def prompts(page: Page) -> list[str]:
    classes = [attributes.get("class", "") for tag, attributes in page.attributes if tag == "p"]
    return [text for text, name in zip(page.texts["p"], classes, strict=True) if name == "prompt"]


def links(page: Page) -> list[str]:
    return [attributes["href"] for tag, attributes in page.attributes if tag == "a"]


def write_gallery(folder: Path, *overrides: str) -> Page:
    assert cli.main(["--config", "gallery", f"runs={folder}", *overrides]) == 0
    return Page((folder / NAME).read_text(encoding="utf-8"))


def test_gallery_has_a_card_per_run_newest_first(runs: Path, caplog, capsys) -> None:
    page = write_gallery(runs)
    assert capsys.readouterr().out == f"{runs / NAME}\n"
    assert prompts(page) == ["a fish", "a bird #1?", "a-dog", "a-cat"]
    states = [attributes["class"].removeprefix("state ") for attributes in page.has_class("state")]
    assert states == ["interrupted"]
    text = " ".join(page.texts["body"][0].split())
    assert text.count("seed 3") == 4 and "1:35 min" in text and "a cow" not in text
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all(f"{name}: " in text for name in ("running", "failed"))  # runs without a result have no card
    for name in ("unreadable", "damaged/summary.json"):  # skipped runs are named on the page and in the log
        assert name in text and name in caplog.text
    assert page.has_class("card")[0]["data-search-text"] == "a fish interrupted seed 3 1:35 min 2020-03-04"
    assert all(address.startswith(("data:", "./")) for address in page.addresses())  # no request leaves the page
    assert not re.search(r"https?:|url\(", (runs / NAME).read_text(encoding="utf-8"))
    assert "default-src 'none'" in next(given["content"] for _, given in page.attributes if "http-equiv" in given)
    assert not list(runs.rglob("*.tmp"))


def test_links_are_relative_to_the_page(runs: Path, tmp_path: Path) -> None:
    found = links(write_gallery(runs))
    assert all(re.fullmatch(r"\./[\w./%-]+", link) for link in found)
    assert [(runs / unquote(link)).resolve() for link in found] == [
        (runs / name / PAGE).resolve() for name in ("a bird #1?", "config/a-dog", "config/a-cat")
    ]
    # page in another folder, after both have been moved
    shutil.move(runs, tmp_path / "x" / "outputs")
    assert cli.main(["--config", "gallery", f"runs={tmp_path}/x/outputs", f"out={tmp_path}/x/pages/all.html"]) == 0
    shutil.move(tmp_path / "x", tmp_path / "y")
    found = links(Page((tmp_path / "y/pages/all.html").read_text(encoding="utf-8")))
    assert len(found) == 3 and all((tmp_path / "y/pages" / unquote(link)).is_file() for link in found)


def test_card_shows_the_first_readable_contact_sheet(tmp_path: Path) -> None:
    """Order: views.png, validation images (newest first), preview.png; damaged files are skipped."""
    run = example(tmp_path / "run")

    def card_image() -> np.ndarray | None:
        uris = [attributes["src"] for tag, attributes in write_gallery(tmp_path).attributes if tag == "img"]
        return np.asarray(Image.open(io.BytesIO(decoded(uris[0]))), float) if uris else None

    for number, name in enumerate(("views.png", "validation/000020.png", "validation/000010.png", "preview.png")):
        colour = (60 * number, 200, 30)
        sheet = Image.open(run / name).convert("RGB")
        left = 32 + SHEET_GAP if name == "views.png" else 0  # the second of eight views is at 45 degrees
        sheet.paste(colour, (left + 6, 6, left + 30, 30))
        sheet.save(run / name)
        image = card_image()
        assert image is not None and image.shape == (32, 32, 3)
        assert np.abs(image[12:20, 12:20].mean((0, 1)) - colour).max() < 10, name
        assert np.abs(image[1:3, 1:3].mean((0, 1)) - 128).max() < 20, name  # the gap of the sheet is cropped
        (run / name).write_bytes((run / name).read_bytes()[:40])
    assert card_image() is None and write_gallery(tmp_path).has_class("missing")


def test_out_is_a_folder_or_an_html_file_and_mistakes_are_one_line(tmp_path: Path, monkeypatch, refuses) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    refuses(["--config", "gallery", "runs=nowhere"], "runs: ", "nowhere")
    refuses(["--config", "gallery", "runs= "], "runs: ")
    refuses(["--config", "gallery", "runs=.", "out= "], "out: ")
    refuses(["--config", "gallery", "runs=.", "out=file/x.html"], "x.html")
    (tmp_path / "file").unlink()
    example(tmp_path / "outputs" / "run")
    for out, path in (("", "outputs/gallery.html"), ("out=x", "x/gallery.html"), ("out=y/z.html", "y/z.html")):
        assert cli.main(["--config", "gallery", *([out] if out else [])]) == 0
        assert (tmp_path / path).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "x", "y"]


FORBIDDEN = [
    ("/", ["localhost"], []), ("/kez/", ["localhost"], []), ("/%C3%A9/", ["localhost"], []), ("/key/", [], []),
    ("/key/", ["localhost", "localhost"], []), ("/key/", ["evil.example:8090"], []),
    ("/key/", ["127.0.0.1.evil.example"], []), ("/key/", ["[::1"], []),
    ("/key/", ["localhost:8090"], ["http://evil.example"]), ("/key/", ["localhost:8090"], ["http://localhost:3000"]),
    ("/key/", ["localhost:8090"], ["https://localhost:8090"]), ("/key/", ["localhost:8090"], ["null"]),
]  # fmt: skip


def test_only_local_requests_with_the_key_are_admitted() -> None:
    for path, hosts, origins in FORBIDDEN:
        assert path_after_key(path, "key", hosts, origins) is None, (path, hosts, origins)
    for host in ("localhost:9000", "127.0.0.1:9000", "[::1]:9000"):  # any port: ssh tunnels
        assert path_after_key("/key/a/b", "key", [host], [f"http://{host}"]) == "a/b"
