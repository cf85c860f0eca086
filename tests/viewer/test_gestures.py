"""Touch, mouse and keyboard events of a canvas (gestures.js), executed in node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "threedgen/viewer/assets/gestures.js"
CANVAS = """
const handlers = {}, calls = [];
const canvas = { clientHeight: 200, setPointerCapture() {}, addEventListener: (name, f) => { handlers[name] = f; } };
globalThis.WheelEvent = { DOM_DELTA_LINE: 1 };
listen(canvas, {
  rotate: (x, y) => calls.push(["rotate", x, y]), zoom: (f) => calls.push(["zoom", f]),
  reset: () => calls.push(["reset"]),
});
const finger = (name, id, x, y) => handlers[name]({ pointerId: id, clientX: x, clientY: y });
const event = (values) => ({ preventDefault() { calls.push(["prevented"]); }, ...values });
"""


def calls(script: str) -> list[list[object]]:
    """Return the callbacks that a script of events triggers."""
    code = f"{SCRIPT.read_text(encoding='utf-8')}{CANVAS}{script}; console.log(JSON.stringify(calls))"
    return json.loads(subprocess.run(["node", "-e", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_gestures_rotate_zoom_and_reset() -> None:
    down = "finger('pointerdown', 1, 10, 10); "
    assert calls(down + "finger('pointermove', 1, 15, 8)") == [["rotate", 5, -2]]
    assert calls(down + "finger('pointerup', 1, 10, 10); finger('pointermove', 1, 15, 8)") == []
    second = "finger('pointerdown', 2, 20, 10); finger('pointermove', 2, 30, 10)"
    assert calls(down + second) == [["zoom", 2]]
    assert calls("handlers.keydown(event({ key: 'ArrowLeft' }))") == [["prevented"], ["rotate", 10, 0]]
    assert calls("handlers.keydown(event({ key: 'ArrowLeft', ctrlKey: true }))") == []
    assert calls("handlers.keydown(event({ key: 'Home' }))") == [["prevented"], ["reset"]]
    (_, (name, factor)) = calls("handlers.wheel(event({ deltaY: -3, deltaMode: 1 }))")
    assert name == "zoom" and factor == pytest.approx(1.1007, abs=1e-3)  # scrolling up zooms in
