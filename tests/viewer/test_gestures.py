"""What fingers, mouse and keys do to a canvas of a page."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "threedgen/viewer/assets/gestures.js"
CANVAS = """
const handlers = {}, done = [];
const canvas = { clientHeight: 200, setPointerCapture() {}, addEventListener: (name, f) => { handlers[name] = f; } };
globalThis.WheelEvent = { DOM_DELTA_LINE: 1 };
listen(canvas, {
  turn: (x, y) => done.push(["turn", x, y]), nearer: (f) => done.push(["nearer", f]), reset: () => done.push(["reset"]),
});
const finger = (name, id, x, y) => handlers[name]({ pointerId: id, clientX: x, clientY: y });
const event = (values) => ({ preventDefault() { done.push(["ours"]); }, ...values });
"""


def done(script: str) -> list[list[object]]:
    """What a canvas was told while a script of events ran."""
    code = f"{SCRIPT.read_text(encoding='utf-8')}{CANVAS}{script}; console.log(JSON.stringify(done))"
    found = subprocess.run(["node", "-e", code], capture_output=True, check=True)
    return json.loads(found.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_one_finger_turns_two_go_nearer_and_keys_do_both() -> None:
    down = "finger('pointerdown', 1, 10, 10); "
    assert done(down + "finger('pointermove', 1, 15, 8)") == [["turn", 5, -2]]
    assert done(down + "finger('pointerup', 1, 10, 10); finger('pointermove', 1, 15, 8)") == []
    second = "finger('pointerdown', 2, 20, 10); finger('pointermove', 2, 30, 10)"
    assert done(down + second) == [["nearer", 2]]
    assert done("handlers.keydown(event({ key: 'ArrowLeft' }))") == [["ours"], ["turn", 10, 0]]
    assert done("handlers.keydown(event({ key: 'ArrowLeft', ctrlKey: true }))") == []
    assert done("handlers.keydown(event({ key: 'Home' }))") == [["ours"], ["reset"]]
    (_, (name, factor)) = done("handlers.wheel(event({ deltaY: -3, deltaMode: 1 }))")
    assert name == "nearer" and factor == pytest.approx(1.1007, abs=1e-3)  # up is nearer, as in maps
