"""The gallery: a card for every generate run below a folder, and a word about what is not shown."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.support.example_run import Page, decoded, example
from threedgen import cli
from threedgen.viewer.gallery import NAME
from threedgen.viewer.report import PAGE, write_report


def at(day: int) -> dict[str, str]:
    """A summary of a run that ended on that day."""
    return {"ended": f"2020-03-{day:02d}T12:00:00+00:00"}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Runs of every sort, at several depths, and folders that are none."""
    folder = tmp_path / "outputs"
    for day, name in enumerate(("config/a-cat", "config/a-dog", "a bird #1?"), 1):
        write_report(example(folder / name, at(day), prompt=name.rpartition("/")[2]))
    example(folder / "evaluation/objects/a-fish", at(4) | {"status": "interrupted", "steps": 5}, prompt="a fish")
    (folder / "evaluation/config.yaml").write_text("task: evaluate-3d\n")
    example(folder / "failed", at(5) | {"status": "failed", "reason": "not finite"}, prompt="<b>a wolf</b>")
    running = example(folder / "running", prompt="a horse")
    (running / "summary.json").unlink()
    (running / "views.png").unlink()
    example(folder / "sample")
    (folder / "sample/config.yaml").write_text("task: sample\nprompt: a cow\n")
    example(folder / "damaged")
    (folder / "damaged/summary.json").write_text("{")
    example(folder / "unreadable")
    (folder / "unreadable/config.yaml").write_text("task: [")
    (folder / "empty").mkdir()
    return folder


def prompts(page: Page) -> list[str]:
    """The prompts of the cards, in order."""
    return [text for text, given in zip(page.texts["p"], _paragraphs(page), strict=True) if given == "prompt"]


def _paragraphs(page: Page) -> list[str]:
    return [given.get("class", "") for tag, given in page.attributes if tag == "p"]


def made(folder: Path, *words: str) -> Page:
    assert cli.main(["--config", "gallery", f"runs={folder}", *words]) == 0
    return Page((folder / NAME).read_text(encoding="utf-8"))


def test_a_card_for_each_run_newest_first(
    mixed: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    page = made(mixed)
    assert capsys.readouterr().out == f"{mixed / NAME}\n"
    assert prompts(page) == ["a horse", "<b>a wolf</b>", "a fish", "a bird #1?", "a-dog", "a-cat"]
    states = [given["class"].removeprefix("state ") for given in page.has_class("state")]
    assert states == ["unfinished", "failed", "interrupted"]
    text = " ".join(page.texts["body"][0].split())
    assert "6 runs" in text and text.count("seed 3") == 6 and "1:35 min" in text
    # what is left out is named, on the page and in the log
    for part in ("unreadable", "summary.json is damaged"):
        assert part in text and part in caplog.text
    assert "a cow" not in text and len(caplog.records) == 2
    assert not list(mixed.rglob("*.tmp"))


def test_links_lead_to_the_reports(mixed: Path, tmp_path: Path) -> None:
    page = made(mixed)
    links = [given["href"] for tag, given in page.attributes if tag == "a"]
    assert len(links) == 3 and all(link.startswith("./") and re.fullmatch(r"[\w./%-]+", link) for link in links)
    assert [(mixed / unquote(link)).resolve() for link in links] == [
        (mixed / name / PAGE).resolve() for name in ("a bird #1?", "config/a-dog", "config/a-cat")
    ]
    # from another place, and after both have been moved
    shutil.move(mixed, tmp_path / "x" / "outputs")
    assert cli.main(["--config", "gallery", f"runs={tmp_path}/x/outputs", f"out={tmp_path}/x/pages/all.html"]) == 0
    shutil.move(tmp_path / "x", tmp_path / "y")
    page = Page((tmp_path / "y/pages/all.html").read_text(encoding="utf-8"))
    links = [given["href"] for tag, given in page.attributes if tag == "a"]
    assert all((tmp_path / "y/pages" / unquote(link)).is_file() for link in links) and len(links) == 3


def test_the_picture_is_the_front_of_the_result(tmp_path: Path) -> None:
    """views.png first, then the newest on the way, then what was sampled, then none; damaged ones are passed over."""
    run = example(tmp_path / "run")

    def shown() -> np.ndarray | None:
        pictures = [given["src"] for tag, given in made(tmp_path).attributes if tag == "img"]
        return np.asarray(Image.open(io.BytesIO(decoded(pictures[0]))), float) if pictures else None

    for number, name in enumerate(("views.png", "validation/000020.png", "validation/000010.png", "preview.png")):
        colour = (60 * number, 200, 30)  # so that each has a front of its own
        sheet = Image.open(run / name).convert("RGB")
        sheet.paste(colour, (6, 6, 30, 30))
        sheet.save(run / name)
        found = shown()
        assert found is not None and found.shape == (32, 32, 3)
        assert np.abs(found[12:20, 12:20].mean((0, 1)) - colour).max() < 10, name
        assert np.abs(found[1:3, 1:3].mean((0, 1)) - 128).max() < 20, name  # of the picture, not of the paper
        (run / name).write_bytes((run / name).read_bytes()[:40])
    assert shown() is None
    assert "no picture yet" in made(tmp_path).texts["body"][0]


def test_a_large_picture_becomes_a_small_one(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    Image.new("RGB", (2 * 1002 + 2, 1004), "red").save(run / "views.png")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("n_view: 8", "n_view: 2"))
    uri = next(given["src"] for tag, given in made(tmp_path).attributes if tag == "img")
    assert Image.open(io.BytesIO(decoded(uri))).size == (320, 320) and len(decoded(uri)) < 20_000


def test_no_request_leaves_the_gallery(mixed: Path) -> None:
    page = made(mixed)
    assert all(address.startswith(("data:", "./")) for address in page.addresses())
    assert not re.search(r"https?:|url\(", (mixed / NAME).read_text(encoding="utf-8"))
    assert "default-src 'none'" in next(given["content"] for _, given in page.attributes if "http-equiv" in given)


def test_what_the_filter_looks_at(mixed: Path) -> None:
    words = [given["data-words"] for given in made(mixed).has_class("card")]
    assert words[1] == "<b>a wolf</b> failed seed 3 1:35 min 2020-03-05"


@pytest.mark.parametrize(
    ("name", "noted", "shown"),
    [
        ("mvdream-toybox", None, "mvdream-toybox field.name=sdf seed 3"),
        ("<mine>", None, "<mine> seed 3"),
        ("mvdream-toybox", "mvdream-toybox field.name=sdf size=8", "mvdream-toybox field.name=sdf size=8 seed 3"),
        ("gallery", None, "gallery seed 3"),
    ],
)
def test_a_card_names_the_config_and_other_choices(tmp_path: Path, name: str, noted: str | None, shown: str) -> None:
    run = example(tmp_path / "run", field={"name": "sdf"})
    (run / "config.yaml").write_text(f"# {name}\n" + (run / "config.yaml").read_text())
    if noted:
        (run / "job.json").write_text(json.dumps({"method": noted}))
    page = made(tmp_path)
    assert f"finished {shown} " in page.has_class("card")[0]["data-words"]
    assert shown.partition(" ")[0] in page.texts["body"][0]


def test_an_empty_folder_gives_an_empty_gallery(tmp_path: Path) -> None:
    page = made(tmp_path)
    assert "There are no runs" in page.texts["body"][0] and prompts(page) == []


def test_where_the_page_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example(tmp_path / "outputs" / "run")
    for out, path in (("", "outputs/gallery.html"), ("out=x", "x/gallery.html"), ("out=y/z.html", "y/z.html")):
        assert cli.main(["--config", "gallery", *([out] if out else [])]) == 0
        assert (tmp_path / path).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "x", "y"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=nowhere"], ("runs: should be a folder with runs below it", "'nowhere'")),
        (["runs=file"], ("runs: should be a folder with runs below it",)),
        (["runs= "], ("runs: should be the path of a folder",)),
        (["runs=.", "out= "], ("out: should be the path",)),
        (["runs=.", "out=file/x.html"], ("x.html could not be written", "run the same command again")),
        (["run=."], ("run: unknown key; did you mean 'runs'?",)),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    assert cli.main(["--config", "gallery", *words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and all(part in output.err for part in said), output.err


def test_runs_without_a_date_are_sorted_by_their_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for age, name in enumerate(("new", "middle", "old")):
        run = example(tmp_path / name, {"ended": "yesterday"}, prompt=name)
        os.utime(run / "summary.json", (1e9 - age, 1e9 - age))
    assert prompts(made(tmp_path)) == ["new", "middle", "old"]
