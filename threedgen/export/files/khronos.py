"""Run the Khronos glTF validator on GLBs if `node` and its package gltf-validator are installed.

The package is searched from the working directory upwards, in NODE_PATH and in node's global packages.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from threedgen.run.disk import Tree

Severity = Literal["error", "warning"]
TIMEOUT_S = 120
"""Timeout in seconds; a file usually takes well below one second."""
_SEVERITY: dict[int, Severity] = {0: "error", 1: "warning"}
"""Reported severities of the validator; the other two are hints."""
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


@dataclass(frozen=True)
class Finding:
    """Problem in a file. error: the asset is broken; warning: it works but could be better."""

    severity: Severity
    code: str
    message: str

    @property
    def is_error(self) -> bool:
        return self.severity == "error"


class ValidatorError(Exception):
    """Failure of an installed validator."""


def validate(glbs: dict[str, bytes]) -> tuple[dict[str, list[Finding]], str]:
    """Return errors and warnings per GLB name, and a status sentence; no findings if the validator is not installed.

    Raises ValidatorError.
    """
    node = shutil.which("node")
    if node is None:
        return {}, "not installed: node is not on the PATH"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.glb" for number in range(len(glbs))]
        for path, data in zip(paths, glbs.values(), strict=True):
            path.write_bytes(data)
        reports = _run(node, paths)
    if reports is None:
        return {}, "not installed: node has no package gltf-validator (npm install -g gltf-validator)"
    try:
        results = {name: _findings(report) for name, report in zip(glbs, reports, strict=True)}
        version = next((str(report["validatorVersion"]) for report in reports), "")
    except (KeyError, TypeError, ValueError) as error:
        raise ValidatorError(f"its report is invalid ({type(error).__name__}: {error})") from error
    counts = [sum(f.severity == kind for part in results.values() for f in part) for kind in _SEVERITY.values()]
    return results, f"version {version}: {counts[0]} errors and {counts[1]} warnings in {len(glbs)} files"


def _run(node: str, paths: list[Path]) -> Any:
    """Return the validator's reports; None if node has no package gltf-validator."""
    try:
        done = subprocess.run(
            [node, "-e", _SCRIPT, *map(str, paths)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ValidatorError(f"timeout after {TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode("utf-8", "replace").split("\n")[0]
        raise ValidatorError(f"node exited with code {error.returncode}: {reason}") from error
    except (OSError, ValueError) as error:
        raise ValidatorError(str(error)) from error


def _findings(report: Tree) -> list[Finding]:
    return [
        Finding(_SEVERITY[message["severity"]], message["code"], f"{message['message']} ({message['pointer']})")
        for message in report["issues"]["messages"]
        if message["severity"] in _SEVERITY
    ]
