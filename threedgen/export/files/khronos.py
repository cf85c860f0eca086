"""Run the Khronos glTF validator on GLBs if `node` and its package gltf-validator are installed.

The package is searched in the working directory and its parents, in NODE_PATH and in node's global packages.
"""

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
"""Maximum run time of the validator in seconds. A file usually takes less than one second."""
_SEVERITY: dict[int, Severity] = {0: "error", 1: "warning"}
"""Severity numbers of the validator that are reported. Its numbers 2 and 3 are information and hints."""
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
    """Problem that the validator found in a file.

    Attributes:
        severity: "error" if the asset is broken, "warning" if it works but could be better.
        code: identifier of the kind of problem.
        message: sentence for the user.
    """

    severity: Severity
    code: str
    message: str

    @property
    def is_error(self) -> bool:
        return self.severity == "error"


class ValidatorError(Exception):
    """Error of a validator that is installed but failed or timed out."""


def validate(glbs: dict[str, bytes]) -> tuple[dict[str, list[Finding]], str]:
    """Run the validator on GLBs, given as file name -> content.

    Returns:
        File name -> errors and warnings, and a sentence on the version and the counts. If the validator is not
        installed, the dict is empty and the sentence starts with "not installed".

    Raises:
        ValidatorError: the validator is installed but failed.
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
    """Return the validator's report of each file as parsed JSON; None if node has no package gltf-validator."""
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
