"""The report page: it shows the run and nothing else, whatever is in the run's files or missing there."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from example_run import CONFIG, SHOWN, SUMMARY, Page, asset_glb, box_glb, decoded, example, glb_json
from hypothesis import given, settings
from hypothesis import strategies as st

from threedgen import cli, yaml_text
from threedgen.config import ConfigError
from threedgen.readable import size, visible
from threedgen.viewer import page as pages
from threedgen.viewer import plots
from threedgen.viewer.record import Record
from threedgen.viewer.report import PAGE, SCRIPTS, report, write_report

ROOT = Path(__file__).parents[1]
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
    for part in ("seed 3 · 20 steps · 1:35 min", "Altogether 1:35 min", "Peak memory 1.57 GB", "torch 2.13.0",
                 "Ended 2020-01-02 03:04 UTC", "Processor a processor", "Dense mesh Triangles 12",
                 "A step, median 0.21 s"):  # fmt: skip
        assert part in text, part
    sizes = {given["href"] for tag, given in page.attributes if tag == "a" and given["href"].startswith("./")}
    assert sizes >= {"./mesh.glb", "./config.yaml", "./validation/000010.png"} and f"./{PAGE}" not in sizes
    assert size((run / "mesh.glb").stat().st_size) in text
    assert all((run / address[2:]).is_file() for address in sizes)


def test_the_mesh_in_the_page_is_a_whole_glb(tmp_path: Path) -> None:
    tree = glb_json(seen(example(tmp_path / "run")).decoded("mesh"))
    assert [tree["accessors"][k]["count"] for k in (0, 3)] == [24, 36]


def test_the_mesh_that_a_run_exports_is_embedded_as_it_is(tmp_path: Path) -> None:
    import numpy as np

    from threedgen.export.glb import save_glb
    from threedgen.export.mesh import Mesh

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
        "texture": 64,
        "levels": {"a_blue_dog": 12_345, "a_blue_dog_LOD1": 600},
        "size_m": [0.5, 0.25, 1.5],
        "files": {name: 1 for name in names},
        "findings": {names[0]: [], names[1]: []},
        "khronos": "not here",
    }
    (run / "asset" / "asset.json").write_text(json.dumps(listed | told))
    return run


def test_the_asset_is_what_is_turned(tmp_path: Path) -> None:
    page = seen(with_asset(tmp_path / "run"))
    assert page.decoded("mesh") == asset_glb() and page.by_id("mesh")["download"] == "a_blue_dog.glb"
    text = " ".join(page.texts["body"][0].split())
    for part in ("Asset Triangles 12,345, 600", "Textures 64 x 64", "Wide, high, deep 0.25 x 1.5 x 0.5 m",
                 "Checkers nothing found", "Khronos validator not here", "Dense mesh Triangles 12"):  # fmt: skip
        assert part in text, part
    cells = page.texts["td"]
    assert cells[0].startswith("asset/a_blue_dog.glb") and cells[2].startswith("the asset: opens in Blender")
    named = {
        "asset/a_blue_dog_LOD1.glb": "a coarser level", "asset/a_blue_dog_collision_godot.glb": "its collider",
        "asset/asset.json": "what was made", "mesh.glb": "the dense surface",
    }  # fmt: skip
    for name, what in named.items():
        assert cells[cells.index(name) + 2].startswith(what)


@pytest.mark.parametrize(
    "told",
    [
        {"files": {"../mesh.glb": 1, "/etc/passwd": 1}},
        {"files": ["a_blue_dog.glb"]},
        {"files": {"gone.glb": 1}, "levels": [], "size_m": ["x", None, 3], "texture": "<b>", "findings": []},
        {"files": {}, "levels": {"a": "x"}, "size_m": {}, "findings": {"a": 3}},
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


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(SUMMARY)), ANYTHING, st.sampled_from(sorted(CONFIG)), ANYTHING)
def test_values_of_any_kind_do_not_stop_the_page(key: str, value: Any, option: str, other: Any) -> None:
    """A summary or config that somebody has edited by hand."""
    record = Record(Path("nowhere"), CONFIG | {option: other}, SUMMARY | {key: value})
    assert Page(report(record)).texts["h1"] and record.ended.utcoffset() is not None


# ---------------------------------------------------------------- plots


def coordinates(svg: str) -> list[tuple[float, float]]:
    """All points of the lines of a plot."""
    lines = re.findall(r'class="(?:line|spread)" d="M([^"Z]*)', svg)
    return [(float(x), float(y)) for line in lines for x, y in (pair.split(",") for pair in line.split())]


@settings(max_examples=200)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).filter(plots.drawable), min_size=1, max_size=600))
def test_a_plot_stays_in_its_frame(values: list[float]) -> None:
    for from_zero in (False, min(values) >= 0):
        svg = str(plots.plot("x", list(enumerate(values, 1)), (1, len(values)), from_zero))
        points = coordinates(svg)
        assert len(points) >= min(len(values), plots.POINTS)
        for x, y in points:
            assert plots.LEFT - 0.1 <= x <= plots.WIDTH - plots.RIGHT + 0.1
            assert plots.TOP - 0.1 <= y <= plots.HEIGHT - plots.BOTTOM + 0.1
        assert "nan" not in svg and "inf" not in svg


def test_what_is_drawn_is_what_was_logged() -> None:
    points = coordinates(str(plots.plot("x", [(0, 1.0), (50, 3.0), (100, 2.0)], (-100, 100))))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 < y2 < y0
    assert x0 == pytest.approx((plots.LEFT + x2) / 2, abs=0.2)  # nothing was there before
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_a_loss_that_falls_by_decades_gets_a_logarithmic_axis() -> None:
    points = [(step, 1000.0 * 10 ** (-step / 10)) for step in range(31)]
    (x0, y0), *_, (x1, y1) = drawn = coordinates(str(plots.plot("Loss", points, (0, 30))))
    assert drawn[15][1] == pytest.approx((y0 + y1) / 2, abs=0.2)  # a straight line
    assert plots.axis([v for _, v in points]).ticks() == [1.0, 10.0, 100.0, 1000.0]
    assert not plots.axis([0.0, 1000.0]).log and not plots.axis([10.0, 50.0]).log


@given(st.floats(-1e9, 1e9), st.floats(1e-5, 10))
def test_ticks_are_round_and_on_the_axis(low: float, span: float) -> None:
    axis = plots.Axis(low, low + span * max(1, abs(low)))
    ticks = axis.ticks()
    assert len(ticks) <= 5 and all(-1e-6 <= axis.at(tick) <= 1 + 1e-6 for tick in ticks)
    assert len(ticks) >= 1
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 3) in (1, 2, 5)


def test_a_long_run_keeps_its_peaks() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5_003] = (5_003.0, 100.0)
    line = plots.thin(points)
    assert len(line.means) == plots.POINTS and max(most for _, _, most in line.spread) == 100.0
    assert coordinates(str(plots.plot("x", points, (0, 9999))))[0][0] == pytest.approx(plots.LEFT, abs=1)


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


# ---------------------------------------------------------------- the viewer's own reading of a GLB

node = pytest.mark.skipif(shutil.which("node") is None, reason="no node here")


def read_by_viewer(data: bytes) -> dict[str, Any]:
    """What glb.js makes of a file: sums and counts, or the error."""
    script = (ROOT / "threedgen/viewer/assets/glb.js").read_text(encoding="utf-8") + """
    const all = (values) => values && Array.from(values);
    try {
      const { parts, images } = readGlb(new Uint8Array(require("fs").readFileSync(0)));
      const plain = parts.map((p) => ({
        positions: all(p.positions), normals: all(p.normals), colours: all(p.colours), uvs: all(p.uvs),
        tangents: all(p.tangents), indices: all(p.indices), factor: p.factor,
        image: p.image, relief: p.relief, openness: p.openness }));
      console.log(JSON.stringify({ parts: plain, images: images.map((i) => [i.type, i.bytes.length]) }));
    } catch (error) { console.log(JSON.stringify({ error: error.message })); }
    """
    done = subprocess.run(["node", "-e", script], input=data, capture_output=True, check=True)
    return json.loads(done.stdout)


@node
def test_the_viewer_reads_what_is_in_the_file() -> None:
    (part,) = read_by_viewer(box_glb())["parts"]
    assert len(part["positions"]) == len(part["normals"]) == 72 and len(part["indices"]) == 36
    assert max(part["positions"][2::3]) == pytest.approx(0.7) and min(part["positions"][1::3]) == pytest.approx(-0.3)
    assert part["colours"][:4] == pytest.approx([1, 30 / 255, 30 / 255, 1]) and part["uvs"] is None
    for k in range(0, 36, 3):  # corners run counter-clockwise, seen from where the normal points
        a, b, c = (part["positions"][3 * i : 3 * i + 3] for i in part["indices"][k : k + 3])
        u, v = [q - p for p, q in zip(a, b, strict=True)], [q - p for p, q in zip(a, c, strict=True)]
        across = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
        normal = part["normals"][3 * part["indices"][k] : 3 * part["indices"][k] + 3]
        assert sum(p * q for p, q in zip(across, normal, strict=True)) > 0


@node
def test_the_viewer_reads_textures_and_nodes() -> None:
    read = read_by_viewer(box_glb(textured=True, translation=[1, 0, 0], scale=[2, 1, -1]))
    (part,) = read["parts"]
    assert part["image"] == {"index": 0, "amount": 1} and read["images"][0] == ["image/png", read["images"][0][1]]
    assert read["images"][0][1] > 60 and part["relief"]["index"] == part["openness"]["index"] == -1
    assert part["uvs"][:2] == [0.25, 0.25] and part["colours"] is None
    assert (min(part["positions"][0::3]), max(part["positions"][0::3])) == (0, 2)
    assert part["normals"][:3] == pytest.approx([1, 0, 0])  # of the face at +x, in spite of the mirror


@node
def test_the_viewer_reads_the_maps_of_an_asset() -> None:
    """What the exporter writes: tangents, and three maps on one set of texture coordinates."""
    (part,) = read_by_viewer(asset_glb())["parts"]
    assert [part[key] for key in ("image", "relief", "openness")] == [{"index": k, "amount": 1} for k in range(3)]
    assert len(part["tangents"]) // 4 == len(part["normals"]) // 3 == len(part["uvs"]) // 2
    assert {abs(sign) for sign in part["tangents"][3::4]} == {1}


@node
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no GLB"),
        (b"glTF" + bytes(30), "no GLB"),
        (box_glb()[:-100], "its end is missing"),
        (box_glb().replace(b"VEC3", b"VECX", 1), "unknown kind"),
    ],
)
def test_the_viewer_says_what_is_wrong_with_a_file(data: bytes, said: str) -> None:
    assert said in read_by_viewer(data)["error"]


# ---------------------------------------------------------------- the command


def test_the_command_makes_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["--config", "report.yaml", f"run={run}"]) == 0
    assert capsys.readouterr().out == f"{run / PAGE}\n"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.pop(run / PAGE).startswith(b"<!doctype html>") and after == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run: None, ("run: should be the folder of a run", "config.yaml", "run")),
        (lambda run: run.mkdir(), ("run: should be the folder of a run", "config.yaml")),
        (lambda run: write(run, "task: sample\nprompt: x\n"), ("task generate", "sample")),
        (lambda run: write(run, "task: [\n"), ("config.yaml",)),
        (lambda run: write(run, "[]"), ("config.yaml", "holds no config")),
        (lambda run: write(run, "task: generate", "{"), ("summary.json", "damaged", "--resume")),
    ],
)
def test_a_folder_that_is_no_run_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, said: tuple[str, ...]
) -> None:
    make(tmp_path / "run")
    assert cli.main(["--config", "report", f"run={tmp_path / 'run'}"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and all(part in output.err for part in said), output.err
    assert not (tmp_path / "run" / PAGE).exists()


def write(run: Path, config: str, summary: str = "") -> None:
    run.mkdir()
    (run / "config.yaml").write_text(config)
    if summary:
        (run / "summary.json").write_text(summary)


def test_without_a_run_it_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", "report"]) == 2
    assert capsys.readouterr().err.startswith("run: is missing; say which, such as run=outputs/")


def test_a_full_disk_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = example(tmp_path / "run")
    before = write_report(run).read_bytes()
    (run / "mesh.glb").unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main(["--config", "report", f"run={run}"]) == 2
    assert re.search(r"report.html could not be made \(No space left.*run the same command", capsys.readouterr().err)
    assert (run / PAGE).read_bytes() == before and not list(run.glob("*.tmp"))


def test_pages_need_no_torch(tmp_path: Path) -> None:
    """Looking at a run answers at once."""
    run = example(tmp_path / "run")
    code = "import sys; from threedgen import cli; code = cli.main(); print('torch' in sys.modules); sys.exit(code)"
    for words in (["--config", "report", f"run={run}"], ["--config", "gallery", f"runs={tmp_path}"]):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr


def test_scripts_and_styles_do_not_end_early() -> None:
    for name in (*SCRIPTS, "gallery.js", "page.css"):
        text = (pages.ASSETS / name).read_text(encoding="utf-8")
        assert "</" not in text and text.isascii(), name
        assert len(text.splitlines()) <= 300, name


def test_a_broken_config_is_an_error_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml_text.write(CONFIG | {"task": "sample"}))
    with pytest.raises(ConfigError, match="it is of 'sample'"):
        write_report(tmp_path)
