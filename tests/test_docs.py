import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.code import word_count
from threedgen import config
from threedgen.cli import parse
from threedgen.config import registry, shipped

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "*/README.md", "addons/*/README.md")
PAGES = sorted({page for place in PLACES for page in ROOT.glob(place)})
USER_PAGES = [page for page in PAGES if page == ROOT / "README.md" or (DOCS in page.parents)]
USER_PAGES = [page for page in USER_PAGES if "experiments" not in page.parts]
LONG_PAGES = ("configs.md", "toybox-words.md")  # tables with a row per config or word: no limit per page
MAX_WORDS, MAX_WORDS_IN_ALL = 900, 25_000


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_page_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text(page)):
        if "://" not in target:
            linked = page.parent / target if target else page
            assert linked.exists() and (not anchor or anchor in anchors(linked)), (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_named_in_page_exist(page: Path) -> None:
    """`guidance/prior.py`, `tests/test_imports.py`: files in backticks, from the root or from threedgen/."""
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|yaml))`", text(page))
    assert not [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "threedgen"))]


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of the commands in code blocks; two spaces separate a description from its command."""
    for line in re.sub(r" *\\\n\s+", " ", text(page)).splitlines():
        found = re.fullmatch(r" {4}(?:\S*python launch\.py|threedgen)((?: \S+)*)(?:  .*)?", line)
        if found and "..." not in found[1] and "NAME_OR_PATH" not in found[1]:
            yield shlex.split(found[1])


@pytest.mark.parametrize("page", [*USER_PAGES, ROOT / "weights" / "README.md"], ids=name)
def test_commands_of_page_are_valid(page: Path) -> None:
    for words in commands(page):
        command = parse(words)
        if not {"--plugin", "--resume", "--list", "--help"} & set(command.flags):
            config.load(command.config, command.overrides)


def test_recipe_of_the_weights_names_valid_commands(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/commands\n')
    (tmp_path / "python").chmod(0o755)
    subprocess.run(["sh", ROOT / "weights" / "recipe.sh"], env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, check=True)
    called = [parse(line.split()[1:]) for line in (tmp_path / "commands").read_text().splitlines()]
    loaded = [config.load(command.config, command.overrides) for command in called]
    assert len(loaded) == 15 and len({options.out for options in loaded}) == 15


@pytest.fixture(scope="module")
def option_names() -> set[str]:
    models = [registry.config_model(kind, choice) for kind, table in registry.TABLE.items() for choice in table]
    queue: list[type[config.Config]] = [config.Config]
    while queue:
        models += (below := queue.pop().__subclasses__())
        queue += below
    return {key for model in models for key in model.model_fields}


@pytest.mark.parametrize("page", USER_PAGES, ids=name)
def test_options_named_in_page_exist(page: Path, option_names: set[str]) -> None:
    """`refine.steps=20` in backticks; the first parts may be keys of one's own (`stages.coarse.size=64`)."""
    named = re.findall(r"`'?((?:[a-z_]+\.)*[a-z_]+)=[^`]*`", text(page))
    assert not [key for key in named if key.split(".")[-1] not in option_names]


def test_lines_of_the_core_loop_are_right() -> None:
    rows = re.findall(r"\| `(\S+\.py)`, line (\d+) \| `(\w+)` \|", (DOCS / "architecture.md").read_text())
    assert len(rows) == 2
    for file, line, name in rows:
        assert f"def {name}(" in (ROOT / file).read_text().splitlines()[int(line) - 1]


def test_every_config_is_in_the_table() -> None:
    table = text(DOCS / "configs.md")
    assert not [config for config in shipped() if f"`{config}`" not in table]
    needs = [line.split("|")[3] for line in table.splitlines() if line.startswith("| `")]
    assert not [need for need in needs if "core" in need and not re.search("second|minute|hour", need)]


def test_user_pages_are_short() -> None:
    counts = {name(page): word_count(page) for page in USER_PAGES}
    assert sum(counts.values()) < MAX_WORDS_IN_ALL
    assert not [page for page in counts if counts[page] > MAX_WORDS and not page.endswith(LONG_PAGES)]


def test_index_and_site_navigation_name_every_page() -> None:
    index, site = text(DOCS / "README.md"), text(ROOT / "mkdocs.yml")
    assert not [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index]
    assert not [page for page in DOCS.glob("**/*.md") if f" {page.relative_to(DOCS)}\n" not in site]


ROWS = re.findall(
    r"^\| `([\w-]+)` \| `([\w.]+)` \| (.*)\| (.*)\| (.*)\| (.*)\|$", (ROOT / "docs/recipes.md").read_text(), re.M
)
"""(config, parameter, paper, released code, ours, reason)"""
LOSSES = re.findall(
    r"^\| (ism|csd|sdi|jsd) \| `(\w+)` \| (.*)\| (.*)\| (.*)\| (.*)\|$", (ROOT / "docs/recipes.md").read_text(), re.M
)
"""(loss, option, paper, released code, default, reason)"""
NAMES = sorted({row[0] for row in ROWS})


def value(made: Any, path: str) -> Any:
    """Return the value of a parameter such as "stages.coarse.size" as plain data; keys of schedules are strings."""
    keys = path.split(".")
    if keys[0] == "stages":
        made, keys = made.stage(keys[1]), keys[2:]
    for key in keys:
        made = getattr(made, key)
    return plain(made)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_the_config(name: str) -> None:
    made = config.load(name, [] if name.startswith(("train-", "threedim-")) else ["prompt=a"])
    rows = {parameter: ours for config, parameter, _, _, ours, _ in ROWS if config == name}
    assert {key: value(made, key) for key in rows} == {key: plain(yaml.safe_load(ours)) for key, ours in rows.items()}


@pytest.mark.parametrize("name", ["ism", "csd", "sdi", "jsd"])
def test_recipe_has_the_defaults_of_a_loss(name: str) -> None:
    rows = {option: plain(yaml.safe_load(default)) for loss, option, _, _, default, _ in LOSSES if loss == name}
    made = config.registry.config_model("distillation", name)()
    assert rows == {key: plain(getattr(made, key)) for key in type(made).model_fields if key in rows}
    assert {*type(made).model_fields} - {*rows} == {"name", "timestep_per"}


def test_every_config_for_a_gpu_is_in_the_table() -> None:
    configs = [name for name in shipped() if "toybox" not in name and "own-prior" not in name]
    needs = {name: yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())["needs"] for name in configs}
    assert [name for name in configs if "GPU" in needs[name]] == NAMES
    assert len(ROWS) == len({row[:2] for row in ROWS})
