"""Arbitrary text and data as config, override or record of a run."""

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import HOSTILE
from threedgen.config import ConfigError, fields, load
from threedgen.export.asset_folder import MANIFEST, read_manifest
from threedgen.run.metrics import Metrics, read_metrics, read_summary
from threedgen.systems.generate.options import GenerateConfig

MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(HOSTILE)
TREES = st.recursive(SIMPLE, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
KEYS = sorted(path for path in fields.paths(GenerateConfig, load("mvdream-toybox")) if path.count(".") < 3)


def is_refused(call: Any, *args: Any) -> bool:
    """Return whether the call raises a ConfigError, whose message must be printable; False if it accepts."""
    try:
        call(*args)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines and all(line.isprintable() for line in lines), str(error)
        return True
    return False


@MANY
@given(
    st.sampled_from(KEYS) | st.text(max_size=30),
    TREES.map(lambda tree: json.dumps(tree, default=str)) | st.text(max_size=50),
)
@example("background", json.dumps({"\U00010000": "\U00010000"}))  # JSON escapes it as a surrogate pair
@example("background", json.dumps({"\ud800": "\ud800"}))
def test_override_with_any_text(key: str, text: str) -> None:
    is_refused(load, "mvdream-toybox", [f"{key}={text}"])


@MANY
@given(TREES | st.dictionaries(st.sampled_from(["step", "loss", "files", "status"]), TREES))
def test_run_records_with_any_data(tmp_path: Path, tree: Any) -> None:
    text = json.dumps(tree)
    for name in ("metrics.jsonl", "summary.json", MANIFEST):
        (tmp_path / name).write_text(text + "\n", encoding="utf-8", errors="surrogatepass")
    Metrics(tmp_path, 10).log(11, {"loss": math.nan})
    assert read_metrics(tmp_path)[-1] == {"step": 11, "loss": None}
    assert isinstance(read_summary(tmp_path), dict) and isinstance(read_manifest(tmp_path).get("files", {}), dict)
