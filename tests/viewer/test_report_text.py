import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.example_run import CONFIG, SUMMARY, Page, example, make_page
from threedgen.run.text import visible
from threedgen.viewer import report as reports
from threedgen.viewer.record import Record, Summary
from threedgen.viewer.report import plot, report

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
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


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


@settings(max_examples=200)
@given(st.text(alphabet="<>/&'\"{}%#!-=;` \n\r\t\x00\x1b\x85\u2028\u202e🐶abscript", max_size=40))
def test_any_prompt_is_shown_unchanged(text: str) -> None:
    page = Page(report(Record(Path("nowhere"), CONFIG | {"prompt": text}, Summary.model_validate(SUMMARY))))
    assert page.texts["h1"] == [visible(text or "(no prompt)")]
    assert page.tags == Page(report(Record(Path("nowhere"), CONFIG, Summary.model_validate(SUMMARY)))).tags


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


@settings(max_examples=100)
@given(st.sampled_from(sorted(CONFIG)), ANYTHING)
def test_config_values_of_any_type_are_tolerated(option: str, value: Any) -> None:
    record = Record(Path("nowhere"), CONFIG | {option: value}, Summary.model_validate(SUMMARY))
    assert Page(report(record)).texts["h1"]


def test_plot_shows_the_logged_values() -> None:
    svg = str(plot("x", [(0, 1.0), (50, 3.0), (100, 2.0)], (-100, 100), False))
    (line,) = re.findall(r'class="line" d="M([^"]*)', svg)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 < y2 < y0
    assert x0 == pytest.approx((reports.LEFT + x2) / 2, abs=0.2)  # the axis starts before the first value
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)
