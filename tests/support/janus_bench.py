"""A small Janus benchmark in a folder of its own, of boxes that two methods make, and what it left there."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import janus_stub
from threedgen.export.files.glb import save_glb


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    janus_stub.register()
    monkeypatch.chdir(tmp_path)
    Path("boxes").mkdir()
    for fronts in range(3):
        save_glb(janus_stub.box(fronts), Path("boxes") / f"{fronts}.glb")
    for name, extra in (("good", "fronts: 1"), ("bad", "fronts: 2")):
        method(name, extra)


def method(name: str, extra: str) -> None:
    places = f"log: {Path('log.txt').resolve()}\nboxes: {Path('boxes').resolve()}\n"
    Path(f"{name}.yaml").write_text(f"task: stub-object\n{places}{extra}\n")


def words(*more: str, methods: str = "[good, bad]") -> list[str]:
    meter = "meter: {classifier: {name: stub}, size: 24}\ntruth: {objects: 0}\n"
    Path("bench.yaml").write_text(f"task: janus-benchmark\n{meter}")
    always = ["out=run", f"methods={methods}", "prompts=[a blue dog, a red car]", "seeds=[0, 1]", "threads=1"]
    return ["--config", "bench.yaml", *always, "-q", *more]


def log() -> Counter[str]:
    return Counter(Path("log.txt").read_text().splitlines() if Path("log.txt").exists() else [])


def report(folder: Path = Path("run")) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def table(folder: Path = Path("run")) -> list[dict[str, Any]]:
    """The table without what depends on the clock and the machine."""
    rows = report(folder)["methods"]
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory_mib")} for row in rows]
