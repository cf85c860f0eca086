"""Print statistics of the code by package: ``python -m benchmarks.code``.

The columns are files, lines, code lines (without blanks, comments and docstrings), functions, uses of ``Any``, ``type:
ignore`` and ``cast``, and functions with an unannotated argument or result. The script also lists import cycles,
including imports inside functions but not those under TYPE_CHECKING, and counts tests, user docs and config options.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("guidance", "representations", "threedgen")
COLUMNS = ("files", "lines", "code", "functions", "Any", "ignore", "cast", "unannotated")


def main() -> None:
    """Print the table of packages, the import cycles and the counts of tests, documentation and options."""
    sources = {path: path.read_text(encoding="utf-8") for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))}
    rows: dict[str, Counter[str]] = {}
    for path, text in sources.items():
        rows.setdefault(package(path), Counter()).update(count(text))
    total = sum(rows.values(), Counter())
    print("| package | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name, row in [*sorted(rows.items()), ("all", total)]:
        print(f"| {name} | " + " | ".join(str(row[column]) for column in COLUMNS) + " |")
    arrows = imports(sources)
    cycles = components(arrows)
    print(
        f"\nimport cycles: {len(cycles)}" + "".join(f"\n- {len(c)} files, such as {', '.join(c[:3])}" for c in cycles)
    )
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    pages = sum(map(word_count, user_pages()))
    print(f"\ntests: {sum(text.count(chr(10)) for text in tests)} lines; user docs: {pages} words")
    print(f"options: {options()}")


def user_pages() -> list[Path]:
    """Return the README and the pages of docs/ that users read, without the experiments."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return [page for page in pages if "experiments" not in page.parts]


def word_count(page: Path) -> int:
    """Return the number of words of a page, without the table in recipes.md, which is data for a test."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return len(" ".join(line for line in lines if page.name != "recipes.md" or not line.startswith("|")).split())


def package(path: Path) -> str:
    """Return the package of a file for the table, such as threedgen/train for threedgen/train/loop.py."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "threedgen" and len(parts) > 2 else parts[0]


def count(text: str) -> Counter[str]:
    """Return {column of the table: number}, such as {"lines": 120, "functions": 7}, for the source text of one file."""
    tree = ast.parse(text)
    found = Counter(files=1, lines=text.count("\n"), code=len(code_lines(text, tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found["functions"] += 1
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [a for a in arguments if a.arg not in ("self", "cls")]
            found["unannotated"] += node.returns is None or any(a.annotation is None for a in named)
        found["Any"] += isinstance(node, ast.Name) and node.id == "Any"
        found["cast"] += isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast"
    found["ignore"] = len(re.findall(r"#\s*type:\s*ignore", text))
    return found


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Return the line numbers, from 1, of all lines with code. `tree` is the syntax tree of `text`."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1) if token.string else ())
    for node in ast.walk(tree):  # docstrings, and the strings below constants
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def imports(sources: dict[Path, str]) -> dict[str, set[str]]:
    """Return a dict from each module to the project's modules that it imports, except those under TYPE_CHECKING."""
    names = {module(path): path for path in sources}
    found = dict[str, set[str]]()
    for name, path in names.items():
        targets = set[str]()
        for node in executed(ast.parse(sources[path])):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                here = name if path.name == "__init__.py" else name.rpartition(".")[0]
                base = ".".join(here.split(".")[: len(here.split(".")) - node.level + 1]) if node.level else ""
                start = ".".join(filter(None, (base, node.module)))
                targets |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
        deepest = {target for target in targets if target in names}
        found[name] = {t for t in deepest if not any(o != t and o.startswith(f"{t}.") for o in deepest)} - {name}
    return found


def executed(tree: ast.AST) -> list[ast.AST]:
    """Return all nodes of the syntax tree except those under ``if TYPE_CHECKING``."""
    nodes, todo = list[ast.AST](), [tree]
    while todo:
        node = todo.pop()
        nodes.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)
    return nodes


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "threedgen" else ("threedgen", *parts))


def components(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Return the import cycles, the largest first: strongly connected components of several modules (Tarjan 1972).

    `arrows` maps each module to the modules that it imports.
    """
    index, low, stack, found = dict[str, int](), dict[str, int](), list[str](), list[list[str]]()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in arrows[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in arrows:
        if name not in index:
            visit(name)
    return sorted(found, key=len, reverse=True)


def options() -> str:
    """Return a text with the numbers of keys in all config models, of config models, and of configs.

    A leaf key has a value, a section has keys of its own. A key that a subclass declares again counts again.
    """
    from threedgen.config import registry
    from threedgen.config.model import Config

    leaves, sections, models = 0, 0, set[type]()

    def is_section(field: Any) -> bool:
        parts = (field.annotation, *getattr(field.annotation, "__args__", ()))
        plain = any(isinstance(part, type) and issubclass(part, Config) for part in parts)
        return plain or any(isinstance(one, registry.Component) for one in field.metadata)

    for kind, table in registry.TABLE.items():
        for name in table:
            model = registry.config_model(kind, name)
            models |= {base for base in model.__mro__ if issubclass(base, Config) and base is not Config}
    todo = list(models)
    while todo:
        for field in todo.pop().model_fields.values():  # type: ignore[attr-defined]
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, Config) and part not in models:
                    models.add(part)
                    todo.append(part)
    for model in models:
        fields = model.model_fields  # type: ignore[attr-defined]
        own = [is_section(fields[name]) for name in model.__dict__.get("__annotations__", {}) if name in fields]
        leaves, sections = leaves + own.count(False), sections + own.count(True)
    configs = len(list((ROOT / "configs").glob("*.yaml")))
    return f"{leaves} leaf keys and {sections} sections in {len(models)} models; {configs} configs"


if __name__ == "__main__":
    main()
