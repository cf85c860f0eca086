import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from rich.filesize import decimal

from tests.support.example_run import SHOWN, Page, asset_glb, decoded, example, make_page
from threedgen import cli
from threedgen.run.text import visible
from threedgen.viewer import page as pages
from threedgen.viewer import report as reports
from threedgen.viewer.page import SCRIPTS
from threedgen.viewer.report import PAGE, plot, write_report

TOP_NAME = re.compile(r"^(?:(?:async )?function|const|let|class) (\w+)", re.MULTILINE)


def body(page: Page) -> str:
    return " ".join(page.texts["body"][0].split())


def test_page_shows_the_whole_run(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    page = make_page(run)
    for name, file in SHOWN.items():
        assert page.decoded(name) == (run / file).read_bytes(), file
    images = [given["src"] for tag, given in page.attributes if tag == "img" and "step" in given["alt"]]
    assert [decoded(uri) for uri in images] == [
        (run / "validation" / f"{step:06d}.png").read_bytes() for step in (10, 20)
    ]
    assert page.texts["h1"] == ["a blue dog"] and page.texts["title"] == ["a blue dog"]
    assert page.texts["pre"] == [(run / "config.yaml").read_text()]
    assert page.has_class("state")[0]["class"] == "state finished" and not page.has_class("missing")[1:]
    assert page.tags.count("svg") == 4 and not page.has_class("notes")
    text = body(page)
    for part in (
        "seed 3 · 20 steps · 1:35 min", "Total 1:35 min", "Peak memory 1.6 GB", "torch 2.13.0", "2020-01-02 03:04 UTC",
        "a processor", "Triangles 12", "median 0.21 s",
    ):  # fmt: skip
        assert part in text, part
    links = {given["href"] for tag, given in page.attributes if tag == "a" and given["href"].startswith("./")}
    assert links >= {"./mesh.glb", "./config.yaml", "./validation/000010.png"} and f"./{PAGE}" not in links
    assert decimal((run / "mesh.glb").stat().st_size) in text
    assert all((run / address[2:]).is_file() for address in links)


def run_with_asset(folder: Path, **changes: Any) -> Path:
    """Return a run with an asset of two levels and a collider; `changes` replace keys of asset.json."""
    run = example(folder)
    (run / "asset").mkdir()
    names = ("a_blue_dog.glb", "a_blue_dog_LOD1.glb", "a_blue_dog_collision_godot.glb")
    for name in names:
        (run / "asset" / name).write_bytes(asset_glb() if name == names[0] else b"another file")
    manifest = {
        "preset": "mobile", "texture": 64, "levels": {"a_blue_dog": 12_345, "a_blue_dog_LOD1": 600},
        "size_m": {"wide": 0.25, "high": 1.5, "deep": 0.5}, "height": "1.5 m high, as a dog usually is",
        "files": {name: 1 for name in names}, "findings": {names[0]: [], names[1]: []}, "khronos": "not here",
    }  # fmt: skip
    (run / "asset" / "asset.json").write_text(json.dumps(manifest | changes))
    return run


def test_asset_is_shown_in_3d_and_described(tmp_path: Path) -> None:
    run = run_with_asset(tmp_path / "run")
    for name in ("checkpoints/last.ckpt", "live/000008/a_blue_dog.glb", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    page = make_page(run)
    assert page.decoded("mesh") == asset_glb() and page.by_id("mesh")["download"] == "a_blue_dog.glb"
    text = body(page)
    for part in (
        "Triangles 12,345, 600", "64 x 64", "0.25 x 1.5 x 0.5 m", "1.5 m high, as a dog usually is",
        f"python launch.py --config export run={run} height=METRES",
        "Khronos validator not here", "Dense mesh Triangles 12",
    ):  # fmt: skip
        assert part in text, part
    names = page.texts["td"][::2]
    assert names[0].startswith("asset/") and names.index("mesh.glb") < names.index("checkpoints/last.ckpt")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../mesh.glb": 1, "/etc/passwd": 1}},
        {"files": {"gone.glb": 1}, "levels": [], "size_m": {"wide": "x"}, "texture": "<b>"},
        {"files": {"a_blue_dog.obj": 1, "a_blue_dog_collision_godot.glb": 1}},
    ],
)
def test_invalid_asset_manifest_falls_back_to_the_mesh(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = run_with_asset(tmp_path / "run", **changes)
    page = make_page(run)
    assert page.decoded("mesh") == (run / "mesh.glb").read_bytes() and page.by_id("mesh")["download"] == "mesh.glb"
    assert "Textures <b>" not in body(page)


def test_page_sends_no_requests_and_policy_allows_only_our_scripts(tmp_path: Path) -> None:
    html = write_report(example(tmp_path / "run")).read_text(encoding="utf-8")
    page = Page(html)
    assert page.addresses() and all(address.startswith(("data:", "./")) for address in page.addresses())
    assert not re.search(r"https?:|//www|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", html)
    assert {"iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)
    policy = next(given["content"] for _, given in page.attributes if "http-equiv" in given)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"] and rules["img-src"] == rules["media-src"] == ["data:"]
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == [f"'sha256-{digest}'"]
    # no attributes that the policy would block: event handlers, inline styles
    assert not [name for _, given in page.attributes for name in given if name.startswith("on") or name == "style"]


def test_page_of_a_run_with_only_a_config(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: generate\nprompt: a cat\n")
    page = make_page(run)
    assert "turntable.mp4" in body(page) and page.has_class("state")[0]["class"] == "state unfinished"
    assert page.by_id("view") is page.by_id("film") is page.by_id("frames") is None
    assert len(page.has_class("missing")) == 5


def test_large_file_is_linked_instead_of_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = example(tmp_path / "run")
    monkeypatch.setattr(pages, "MAX_EMBEDDED_BYTES", (run / "mesh.glb").stat().st_size - 1)
    page = make_page(run)
    assert len(page.has_class("missing")) == 1 and page.by_id("view") is None
    assert page.addresses().count("./mesh.glb") == 2


@pytest.mark.parametrize(
    ("summary", "config", "state", "part"),
    [
        ({"status": "interrupted", "steps": 7}, {}, "interrupted", "7 of 20 steps"),
        ({"status": "failed", "reason": "the loss term 'x' is not finite"}, {}, "failed", "the loss term 'x'"),
        ({}, {"trainer": {"max_steps": 40}}, "unfinished", "20 of 40 steps"),
        ({"notes": ["this prior does not know 'dgo'"]}, {}, "finished", "this prior does not know 'dgo'"),
    ],
)
def test_state_and_reason_are_shown(tmp_path, summary, config, state, part) -> None:
    page = make_page(example(tmp_path / "run", summary, **config))
    assert page.has_class("state")[0]["class"] == f"state {state}"
    assert part in page.texts["body"][0]


def test_metrics_without_a_number_are_skipped(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    lines = [{"step": 1, "loss": None}, {"step": 2, "loss": "3"}, {"step": 3, "loss": 5.0}, {"step": 4, "loss": True}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 5, "lo')
    assert "svg" not in make_page(run).tags
    with open(run / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 6, "loss": 4.0}\n')
    page = make_page(run)
    labels = [given["aria-label"] for tag, given in page.attributes if tag == "svg"]
    assert labels == ["Loss: 5 at step 3, 4 at step 6"]


def test_scripts_of_a_page_share_no_top_level_name_and_contain_no_closing_tag() -> None:
    """The page concatenates them into one script, where a second definition would replace the first."""
    for name in (*SCRIPTS, "gallery.js", "page.css"):
        text = (pages.ASSETS / name).read_text(encoding="utf-8")
        assert "</" not in text and text.isascii(), name
    names = [name for script in SCRIPTS for name in TOP_NAME.findall((pages.ASSETS / script).read_text("utf-8"))]
    assert len(names) > 20 and not {name for name in names if names.count(name) > 1}


def test_report_rewrites_only_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["--config", "report.yaml", f"run={run}"]) == 0
    assert capsys.readouterr().out == f"{run / PAGE}\n"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    page = after.pop(run / PAGE)
    assert page.startswith(b"<!doctype html>") and after == before and write_report(run).read_bytes() == page


@pytest.mark.parametrize(
    ("files", "parts"),
    [(None, ["run: ", "config.yaml"]), ({"config.yaml": "task: sample\nprompt: x\n"}, ["generate", "'sample'"])],
)
def test_folder_without_a_valid_run_is_refused(tmp_path, refuses, files, parts) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    refuses(["--config", "report", f"run={run}"], *parts)
    assert not (run / PAGE).exists()


HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style></title></textarea><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% raw %} ${7*7} `x`",
    "<!-- --> <![CDATA[ ]]> &lt;b&gt; &amp; &#60;",
    "🐶🎩 👩‍🚀 ひつじ שלום \u202eevil",
    "two\nlines\r\nand\rmore\ttabs \x00\x07\x1b[31mred\x7f\x85\u2028",
    "a red dog and " * 800,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_any_source_is_escaped(tmp_path: Path, text: str) -> None:
    """The page of a hostile run has the same tags as that of a harmless one."""

    def page_with(name: str, text: str) -> Page:
        environment = {"versions": {text: text}, "cpu": text, "platform": text}
        summary = {"notes": [text], "reason": text, "status": "failed", "seconds_of": {text: 1.0}}
        weights = {"prior": {"name": text, "weights": text}}
        return make_page(example(tmp_path / name, summary | {"environment": environment}, prompt=text, **weights))

    harmless, page = page_with("harmless", "a blue dog"), page_with("hostile", text)
    assert page.tags == harmless.tags
    names = [(tag, sorted(given)) for tag, given in page.attributes if tag != "h1"]
    assert names == [(tag, sorted(given)) for tag, given in harmless.attributes if tag != "h1"]
    assert page.texts["h1"] == [visible(text)]
    assert visible(text) in page.texts["li"] and visible(text) in page.texts["dd"]
    assert page.texts["script"] == harmless.texts["script"]


@pytest.mark.skipif(os.name != "posix", reason="names that Windows forbids")
def test_file_names_are_escaped(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    names = ['<img src=x onerror="x">', "a?b#c d%20.txt", "http:x", "ひつじ.png", os.fsdecode(b"stray\xff.txt")]
    for name in names:
        (run / name).write_text("x")
    page = make_page(run)
    links = [given["href"] for tag, given in page.attributes if tag == "a"]
    for name in names:
        text = visible(name)
        assert text in page.texts["a"]
        address = links[page.texts["a"].index(text)]
        assert address.startswith("./") and re.fullmatch(r"[\w./%~-]+", address)
        assert unquote_to_bytes(address[2:]) == os.fsencode(name)


def test_plot_shows_the_logged_values() -> None:
    svg = str(plot("x", [(0, 1.0), (50, 3.0), (100, 2.0)], (-100, 100), False))
    (line,) = re.findall(r'class="line" d="M([^"]*)', svg)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 < y2 < y0
    assert x0 == pytest.approx((reports.LEFT + x2) / 2, abs=0.2)  # the axis starts before the first value
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)
