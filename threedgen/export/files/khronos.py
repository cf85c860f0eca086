"""The Khronos glTF validator over an asset's GLBs, where it is: `node` on the PATH with its package gltf-validator.

It is looked for from the working directory upwards, in NODE_PATH, and among node's global packages.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

from threedgen.export.files.check import Finding

PATIENCE = 120
"""Seconds after which no answer is expected any more; it takes well below a second for a file."""
_SEVERITY: dict[int, Literal["error", "warning"]] = {0: "error", 1: "warning"}
"""The two gravest of the validator's four; the rest are hints."""
_SCRIPT = """
const { readFileSync } = require("fs"), { dirname, join } = require("path");
const globally = [join(dirname(process.execPath), "..", "lib"), join(process.env.APPDATA || "/", "npm")];
let place = null;
try {
  place = require.resolve("gltf-validator", { paths: [process.cwd(), ...globally] });
} catch {}
(async () => {
  if (!place) return console.log("null");
  const validator = require(place), reports = [];
  for (const path of process.argv.slice(1)) {
    reports.push(await validator.validateBytes(new Uint8Array(readFileSync(path)), { format: "glb", maxIssues: 0 }));
  }
  console.log(JSON.stringify(reports));
})().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
"""


class NoAnswer(Exception):
    """The validator is there, but could not do its work."""


def validate(glbs: dict[str, bytes]) -> tuple[dict[str, list[Finding]], str]:
    """Errors and warnings in each GLB by its name, and a sentence about who looked; no findings if nobody could.

    Raises NoAnswer.
    """
    node = shutil.which("node")
    if node is None:
        return {}, "not here: there is no node"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.glb" for number in range(len(glbs))]
        for path, data in zip(paths, glbs.values(), strict=True):
            path.write_bytes(data)
        reports = _ask(node, paths)
    if reports is None:
        return {}, "not here: node has no package gltf-validator (npm install -g gltf-validator)"
    try:
        found = {name: _findings(report) for name, report in zip(glbs, reports, strict=True)}
        version = next((str(report["validatorVersion"]) for report in reports), "")
    except (KeyError, TypeError, ValueError) as error:
        raise NoAnswer(f"its report cannot be read ({type(error).__name__}: {error})") from error
    counts = [sum(f.severity == kind for part in found.values() for f in part) for kind in _SEVERITY.values()]
    return found, f"version {version}: {counts[0]} errors and {counts[1]} warnings in {len(glbs)} files"


def _ask(node: str, paths: list[Path]) -> Any:
    """The validator's reports; None if node does not have it."""
    try:
        done = subprocess.run(
            [node, "-e", _SCRIPT, *map(str, paths)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"it took more than {PATIENCE} s") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode("utf-8", "replace").split("\n")[0]
        raise NoAnswer(f"node ended with code {error.returncode}: {reason}") from error
    except (OSError, ValueError) as error:
        raise NoAnswer(str(error)) from error


def _findings(report: dict[str, Any]) -> list[Finding]:
    """The messages that are worth a finding."""
    return [
        Finding(_SEVERITY[message["severity"]], message["code"], f"{message['message']} ({message['pointer']})")
        for message in report["issues"]["messages"]
        if message["severity"] in _SEVERITY
    ]
