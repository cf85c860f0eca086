"""Run the Khronos glTF validator on GLBs if `node` and its package gltf-validator are installed.

The package is searched in the working directory and its parents, in NODE_PATH and in node's global packages.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

TIMEOUT_S = 120  # maximum run time of the validator in seconds. A file usually takes less than one second.
_SEVERITY = {0: "error", 1: "warning"}  # not reported: 2 (information), 3 (hint)
_SCRIPT = """
const { readFileSync } = require("fs"), { dirname, join } = require("path");
const globally = [join(dirname(process.execPath), "..", "lib"), join(process.env.APPDATA || "/", "npm")];
const validator = require(require.resolve("gltf-validator", { paths: [process.cwd(), ...globally] }));
const validate = (path) =>
  validator.validateBytes(new Uint8Array(readFileSync(path)), { format: "glb", maxIssues: 0 });
Promise.all(process.argv.slice(1).map(validate)).then((reports) => console.log(JSON.stringify(reports)));
"""
_MISSING = "Cannot find module 'gltf-validator'"


def validate(glbs: dict[str, bytes]) -> tuple[dict[str, list[str]], str]:
    """Run the Khronos glTF validator on GLB files, given as file name -> content.

    Returns:
        File name -> list of errors and warnings, each as "error CODE: message (place)"; and a sentence with the
        validator's version and the counts. If the validator is not installed or fails, the dict is empty and the
        sentence gives the reason.
    """
    node = shutil.which("node")
    if node is None:
        return {}, "not installed: node is not on the PATH"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.glb" for number in range(len(glbs))]
        for path, data in zip(paths, glbs.values(), strict=True):
            path.write_bytes(data)
        command = [node, "-e", _SCRIPT, *map(str, paths)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {}, f"failed: timeout after {TIMEOUT_S} s"
        except OSError as error:
            return {}, f"failed: {error}"
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace")
        if _MISSING in message:
            return {}, "not installed: node has no package gltf-validator (npm install -g gltf-validator)"
        reason = next((line for line in message.split("\n") if "Error" in line), message.strip())
        return {}, f"failed: node exited with code {done.returncode}: {reason}"
    try:
        reports = json.loads(done.stdout)
        results = {
            name: [
                f"{_SEVERITY[found['severity']]} {found['code']}: {found['message']} ({found['pointer']})"
                for found in report["issues"]["messages"]
                if found["severity"] in _SEVERITY
            ]
            for name, report in zip(glbs, reports, strict=True)
        }
        version = reports[0]["validatorVersion"]
    except (LookupError, TypeError, ValueError) as error:
        return {}, f"failed: its report is invalid ({type(error).__name__}: {error})"
    counts = [sum(f.startswith(kind) for part in results.values() for f in part) for kind in _SEVERITY.values()]
    return results, f"version {version}: {counts[0]} errors and {counts[1]} warnings in {len(glbs)} files"
