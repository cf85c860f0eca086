"""The report page: it shows the run and nothing else, whatever is in the run's files or missing there."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.filesize import decimal

from tests.support.example_run import CONFIG, SHOWN, SUMMARY, Page, asset_glb, decoded, example, glb_json
from threedgen.run.text import visible
from threedgen.viewer import page as pages
from threedgen.viewer.record import Record
from threedgen.viewer.report import PAGE, SCRIPTS, report, write_report

TOP_NAME = re.compile(r"^(?:(?:async )?function|const|let|class) (\w+)", re.MULTILINE)

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style></title></textarea><img src=x onerror=alert(1)>",
    '"><img src=x onerror="alert(1)">',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% raw %} ${7*7} `x`",
    "<!-- --> <![CDATA[ ]]> &lt;b&gt; &amp; &#60;",
    "javascript:alert(1) data:text/html,<b>",
    "🐶🎩 👩‍🚀 ひつじ שלום \u202eevil",
    "two\nlines\r\nand\rmore\ttabs",
    "\x00\x07\x1b[31mred\x7f\x85\u2028",
    "a red dog and " * 800,
]


def seen(folder: Path) -> Page:
    """The page of a run, made now and taken apart."""
    return Page(write_report(folder).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- what is on it


def test_everything_of_the_run_is_in_the_page(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    page = seen(run)
    for name, file in SHOWN.items():
        assert page.decoded(name) == (run / file).read_bytes(), file
    pictures = [given["src"] for tag, given in page.attributes if tag == "img" and "step" in given["alt"]]
    assert [decoded(uri) for uri in pictures] == [
        (run / "validation" / f"{step:06d}.png").read_bytes() for step in (10, 20)
    ]
    assert page.texts["h1"] == ["a blue dog"] and page.texts["title"] == ["a blue dog"]
    assert page.texts["pre"] == [(run / "config.yaml").read_text()]
    assert page.has_class("state")[0]["class"] == "state finished" and not page.has_class("missing")[1:]
    assert page.tags.count("svg") == 4 and not page.has_class("notes")
    text = " ".join(page.texts["body"][0].split())
    for part in (
        "seed 3 · 20 steps · 1:35 min",
        "Altogether 1:35 min",
        "Peak memory 1.6 GB",
        "torch 2.13.0",
        "Ended 2020-01-02 03:04 UTC",
        "Processor a processor",
        "Dense mesh Triangles 12",
        "A step, median 0.21 s",
    ):
        assert part in text, part
    sizes = {given["href"] for tag, given in page.attributes if tag == "a" and given["href"].startswith("./")}
    assert sizes >= {"./mesh.glb", "./config.yaml", "./validation/000010.png"} and f"./{PAGE}" not in sizes
    assert decimal((run / "mesh.glb").stat().st_size) in text
    assert all((run / address[2:]).is_file() for address in sizes)


def test_the_mesh_in_the_page_is_a_whole_glb(tmp_path: Path) -> None:
    tree = glb_json(seen(example(tmp_path / "run")).decoded("mesh"))
    assert [tree["accessors"][k]["count"] for k in (0, 3)] == [24, 36]


def test_the_mesh_that_a_run_exports_is_embedded_as_it_is(tmp_path: Path) -> None:
    import numpy as np

    from threedgen.export.files.glb import save_glb
    from threedgen.export.shape.mesh import Mesh

    corners = np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    faces = np.asarray([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]], np.int32)
    run = example(tmp_path / "run")
    save_glb(Mesh(corners, faces, corners, corners, {}), run / "mesh.glb", {"prompt": "</script>"})
    data = seen(run).decoded("mesh")
    assert data == (run / "mesh.glb").read_bytes() and glb_json(data)["asset"]["extras"]["prompt"] == "</script>"


def with_asset(folder: Path, **told: Any) -> Path:
    """A run that ended in an asset of two levels and a collider; `told` replaces keys of asset.json."""
    run = example(folder)
    (run / "asset").mkdir()
    names = ("a_blue_dog.glb", "a_blue_dog_LOD1.glb", "a_blue_dog_collision_godot.glb")
    for name in names:
        (run / "asset" / name).write_bytes(asset_glb() if name == names[0] else b"another file")
    listed = {
        "preset": "mobile",
        "texture": 64,
        "levels": {"a_blue_dog": 12_345, "a_blue_dog_LOD1": 600},
        "size_m": {"wide": 0.25, "high": 1.5, "deep": 0.5},
        "height": "1.5 m high, as a dog usually is",
        "files": {name: 1 for name in names},
        "findings": {names[0]: [], names[1]: []},
        "khronos": "not here",
    }
    (run / "asset" / "asset.json").write_text(json.dumps(listed | told))
    return run


def test_the_asset_is_what_is_turned(tmp_path: Path) -> None:
    run = with_asset(tmp_path / "run")
    for name in ("checkpoints/last.ckpt", "live/000008/a_blue_dog.glb", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    page = seen(run)
    assert page.decoded("mesh") == asset_glb() and page.by_id("mesh")["download"] == "a_blue_dog.glb"
    text = " ".join(page.texts["body"][0].split())
    for part in (
        "Asset Triangles 12,345, 600",
        "Textures 64 x 64",
        "Wide, high, deep 0.25 x 1.5 x 0.5 m",
        "Height 1.5 m high, as a dog usually is",
        f"Another height python launch.py --config export run={tmp_path / 'run'} preset=mobile height=METRES",
        "Checkers nothing found",
        "Khronos validator not here",
        "Dense mesh Triangles 12",
    ):
        assert part in text, part
    cells = page.texts["td"]
    assert cells[0].startswith("asset/a_blue_dog.glb") and cells[2].startswith("the asset: opens in Blender")
    named = {
        "asset/a_blue_dog_LOD1.glb": "a coarser level", "asset/a_blue_dog_collision_godot.glb": "its collider",
        "asset/asset.json": "what was made", "mesh.glb": "the dense surface",
        "checkpoints/last.ckpt": "a state of the run", "validation/000010.png": "four sides",
        "live/000008/a_blue_dog.glb": "of an asset that was asked for on the way", "notes.txt": "",
    }  # fmt: skip
    for name, what in named.items():
        assert cells[cells.index(name) + 2].startswith(what)


@pytest.mark.parametrize(
    "told",
    [
        {"files": {"../mesh.glb": 1, "/etc/passwd": 1}},
        {"files": ["a_blue_dog.glb"], "preset": ["mobile"]},
        {"files": {"gone.glb": 1}, "levels": [], "size_m": {"wide": "x", "deep": 3}, "texture": "<b>", "findings": []},
        {"files": {}, "levels": {"a": "x"}, "size_m": [1, 2, 3], "findings": {"a": 3}},
        {"files": {"a_blue_dog.obj": 1, "a_blue_dog_collision_godot.glb": 1}},
    ],
)
def test_a_strange_list_of_the_asset_does_no_harm(tmp_path: Path, told: dict[str, Any]) -> None:
    run = with_asset(tmp_path / "run", **told)
    page = seen(run)
    assert page.decoded("mesh") == (run / "mesh.glb").read_bytes() and page.by_id("mesh")["download"] == "mesh.glb"
    assert "Textures <b>" not in " ".join(page.texts["body"][0].split())


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert not list(run.rglob("*.tmp"))


# ---------------------------------------------------------------- nothing gets out, nothing gets in


def test_no_request_leaves_the_page(tmp_path: Path) -> None:
    html = write_report(example(tmp_path / "run")).read_text(encoding="utf-8")
    page = Page(html)
    assert page.addresses() and all(address.startswith(("data:", "./")) for address in page.addresses())
    assert not re.search(r"https?:|//www|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", html)
    assert {"iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)


def test_the_policy_runs_our_scripts_only(tmp_path: Path) -> None:
    page = seen(example(tmp_path / "run"))
    policy = next(given["content"] for _, given in page.attributes if "http-equiv" in given)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"] and rules["img-src"] == rules["media-src"] == ["data:"]
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == [f"'sha256-{digest}'"]
    # what the policy would refuse is not tried: attributes with code, attributes with styles
    assert not [name for _, given in page.attributes for name in given if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_wherever_it_comes_from(tmp_path: Path, text: str) -> None:
    """The page of a hostile run has the very tags of that of a harmless one."""

    def make(name: str, text: str) -> Page:
        environment = {"versions": {text: text}, "cpu": text, "platform": text}
        summary = {"notes": [text], "reason": text, "status": "failed", "seconds_of": {text: 1.0}}
        weights = {"prior": {"name": text, "weights": text}}
        return seen(example(tmp_path / name, summary | {"environment": environment}, prompt=text, **weights))

    harmless, page = make("harmless", "a blue dog"), make("hostile", text)
    assert page.tags == harmless.tags
    names = [(tag, sorted(given)) for tag, given in page.attributes if tag != "h1"]
    assert names == [(tag, sorted(given)) for tag, given in harmless.attributes if tag != "h1"]
    assert page.texts["h1"] == [visible(text)]
    assert visible(text) in page.texts["li"] and visible(text) in page.texts["dd"]
    assert page.texts["script"] == harmless.texts["script"]


@settings(max_examples=200)
@given(st.text(alphabet="<>/&'\"{}%#!-=;` \n\r\t\x00\x1b\x85\u2028\u202e🐶abscript", max_size=40))
def test_any_prompt_is_shown_as_it_is(text: str) -> None:
    shown = Page(report(Record(Path("nowhere"), CONFIG | {"prompt": text}, SUMMARY)))
    assert shown.texts["h1"] == [visible(text or "(no prompt)")]
    assert shown.tags == Page(report(Record(Path("nowhere"), CONFIG, SUMMARY))).tags


def test_file_names_are_text_too(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    names = ['<img src=x onerror="x">', "a?b#c d%20.txt", "http:x", "ひつじ.png"]
    if os.name == "posix":
        names.append(os.fsdecode(b"stray\xff.txt"))
    for name in names:
        if os.name == "posix" or name.isalnum():
            (run / name).write_text("x")
    page = seen(run)
    links = [given["href"] for tag, given in page.attributes if tag == "a"]
    for name in names[: len(names) if os.name == "posix" else 0]:
        text = visible(name)
        assert text in page.texts["a"]
        address = links[page.texts["a"].index(text)]
        assert address.startswith("./") and re.fullmatch(r"[\w./%~-]+", address)
        from urllib.parse import unquote_to_bytes

        assert unquote_to_bytes(address[2:]) == os.fsencode(name)


def test_a_control_character_is_shown_as_an_escape() -> None:
    assert visible("a\x1b[31m\x00b\r\nc\rd\u2028\udcff") == "a\\x1b[31m\\x00b\nc\nd\u2028\\udcff"
    assert visible("👩‍🚀 שלום\t") == "👩‍🚀 שלום\\t"


# ---------------------------------------------------------------- what is missing is said


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("mesh.glb", "This run has no mesh.glb."),
        ("preview.png", "This run has no preview.png"),
        ("views.png", "This run has no views.png."),
        ("turntable.mp4", "no turntable.mp4 in this run; these are the sides of views.png"),
        ("metrics.jsonl", "This run logged no metrics."),
        ("validation", ""),
        ("summary.json", "The run has not finished."),
    ],
)
def test_a_missing_piece_is_said(tmp_path: Path, missing: str, said: str) -> None:
    run = example(tmp_path / "run")
    whole = seen(run)
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = seen(run)
    text = " ".join(page.texts["body"][0].split())
    assert said in text and (not said or said not in " ".join(whole.texts["body"][0].split()))
    assert f"./{missing}" not in page.addresses()
    assert page.texts["h1"] == ["a blue dog"]


def test_nothing_but_a_config(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: generate\nprompt: a cat\n")
    page = seen(run)
    text = page.texts["body"][0]
    assert "This run has no turntable.mp4." in text and "The run has not finished." in text
    assert page.by_id("view") is page.by_id("film") is page.by_id("frames") is None
    assert len(page.has_class("missing")) == 5


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"not a mesh"])
def test_damaged_files_do_not_stop_the_page(tmp_path: Path, content: bytes) -> None:
    run = example(tmp_path / "run")
    for name in ("mesh.glb", "turntable.mp4", "views.png", "preview.png", "metrics.jsonl"):
        (run / name).write_bytes(content)
    page = seen(run)
    assert page.decoded("mesh") == page.decoded("film") == content
    assert "This run logged no metrics." in page.texts["body"][0]


def test_a_huge_file_is_linked_and_not_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = example(tmp_path / "run")
    monkeypatch.setattr(pages, "LARGEST", (run / "mesh.glb").stat().st_size - 1)
    page = seen(run)
    assert "mesh.glb is too large to be shown" in page.texts["body"][0]
    assert page.by_id("view") is None and page.addresses().count("./mesh.glb") == 2


@pytest.mark.parametrize(
    ("summary", "config", "state", "said"),
    [
        ({}, {}, "finished", "20 steps"),
        ({"status": "interrupted", "steps": 7}, {}, "interrupted", "7 of 20 steps"),
        ({"status": "failed", "reason": "the loss term 'x' is not finite"}, {}, "failed", "the loss term 'x'"),
        ({}, {"trainer": {"max_steps": 40}}, "unfinished", "20 of 40 steps"),
        ({"status": "terminated"}, {}, "unfinished", "has not finished"),
        ({"status": ["finished"]}, {}, "unfinished", "has not finished"),
        ({"notes": ["this prior does not know 'dgo'"]}, {}, "finished", "this prior does not know 'dgo'"),
    ],
)
def test_how_a_run_ended_is_said(
    tmp_path: Path, summary: dict[str, Any], config: dict[str, Any], state: str, said: str
) -> None:
    page = seen(example(tmp_path / "run", summary, **config))
    assert page.has_class("state")[0]["class"] == f"state {state}"
    assert said in page.texts["body"][0]


def test_notes_stand_below_the_asset_and_why_it_stopped_above(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "it broke", "notes": ["a word"]}
    text = write_report(example(tmp_path / "run", failed)).read_text(encoding="utf-8")
    assert text.index("it broke") < text.index('class="hero"') < text.index("<li>a word</li>") < text.index("<h2>Views")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200)
@case("peak_memory_mib", 1e308, "prompt", "a dog")
@given(st.sampled_from(sorted(SUMMARY)), ANYTHING, st.sampled_from(sorted(CONFIG)), ANYTHING)
def test_values_of_any_kind_do_not_stop_the_page(key: str, value: Any, option: str, other: Any) -> None:
    """A summary or config that somebody has edited by hand."""
    record = Record(Path("nowhere"), CONFIG | {option: other}, SUMMARY | {key: value})
    assert Page(report(record)).texts["h1"] and record.ended.utcoffset() is not None


def test_lines_without_a_number_are_left_out(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    lines = [{"step": 1, "loss": None}, {"step": 2, "loss": "3"}, {"step": 3, "loss": 5.0}, {"step": 4, "loss": True}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 5, "lo')
    assert "This run logged no metrics." in seen(run).texts["body"][0]
    with open(run / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 6, "loss": 4.0}\n')
    page = seen(run)
    labels = [given["aria-label"] for tag, given in page.attributes if tag == "svg"]
    assert labels == ["Loss: 5 at step 3, 4 at step 6"]


def test_scripts_of_one_page_have_each_name_once() -> None:
    """They are one script in the page, where of two functions of a name the later would answer for both."""
    names = [name for script in SCRIPTS for name in TOP_NAME.findall((pages.ASSETS / script).read_text("utf-8"))]
    assert len(names) > 20 and not {name for name in names if names.count(name) > 1}
