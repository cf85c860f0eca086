"""Accessibility checks of pages with axe-core: AXE is the file axe.min.js of the npm package axe-core."""

import os
from pathlib import Path
from typing import Any

import pytest

AXE = Path(os.environ.get("AXE", "node_modules/axe-core/axe.min.js"))


def violations(page: Any) -> list[str]:
    """Return the violations of rules of axe-core on a page of playwright and in its frames: rule, elements.

    Skips without axe-core.
    """
    if not AXE.is_file():
        pytest.skip("no axe-core here")
    found = []
    for frame in page.frames:  # each by itself: axe-core cannot reach into a sandbox
        if not frame.evaluate("'axe' in window"):
            frame.evaluate(AXE.read_text(encoding="utf-8"))  # the page's policy forbids a script element
        rules = {"page-has-heading-one": {"enabled": frame == page.main_frame}}  # one in any of the frames is enough
        found += frame.evaluate("(rules) => axe.run({ iframes: false, rules })", rules)["violations"]
    return [f"{rule['id']}: {[node['html'][:150] for node in rule['nodes']]}" for rule in found]
