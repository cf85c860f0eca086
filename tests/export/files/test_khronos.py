import os
import shutil
from pathlib import Path

import pytest

from tests.support.ball_run import SMALL, asset_manifest, ball_run, register
from tests.support.textured_box import files, textured
from threedgen import cli
from threedgen.export.asset import hull
from threedgen.export.files import glb
from threedgen.export.files.glb import plain_glb_bytes, textured_glb_bytes, validate

unix = pytest.mark.skipif(os.name == "nt", reason="needs a shell")
TWO = {"a.glb": b"one", "b.glb": b"two"}
FAULTY = """{"validatorVersion": "9", "issues": {"messages": [
    {"severity": 0, "code": "ACCESSOR_INDEX_OOB", "message": "too far", "pointer": "/accessors/0"},
    {"severity": 1, "code": "NODE_EMPTY", "message": "empty", "pointer": "/nodes/0"},
    {"severity": 2, "code": "UNUSED_OBJECT", "message": "unused", "pointer": "/meshes/0"}]}}"""


def fake_node(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a `node` first on the PATH that runs a shell script."""
    folder.mkdir(exist_ok=True)
    (folder / "node").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


NO_PACKAGE = """echo "Error: Cannot find module 'gltf-validator'" >&2; exit 1"""


@unix
@pytest.mark.parametrize(
    ("script", "values"),
    [
        ("echo no json", ["failed"]),
        ("exec sleep 20", ["failed", "0.3"]),
        (NO_PACKAGE, ["npm install -g gltf-validator"]),
    ],
    ids=["no json", "timeout", "no package"],
)
def test_validate_returns_the_reason_of_a_failure(tmp_path, monkeypatch, script: str, values: list[str]) -> None:
    if "sleep" in script:
        monkeypatch.setattr(glb, "TIMEOUT_S", 0.3)
    fake_node(tmp_path, monkeypatch, script)
    findings, status = validate(TWO)
    assert findings == {} and all(value in status for value in values)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    findings, status = validate(TWO)
    assert findings == {} and "node" in status and "npm" not in status


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_validate_passes_the_file_bytes_to_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "node_modules" / "gltf-validator"
    package.mkdir(parents=True)
    (package / "index.js").write_text(
        "exports.validateBytes = async (bytes, { format, maxIssues }) => ({ validatorVersion: '9', issues: {"
        "messages: [{ severity: 1, code: 'SEEN', message: `${format} ${maxIssues} ${Buffer.from(bytes)}`,"
        "pointer: '/' }] } });"
    )
    monkeypatch.chdir(tmp_path)
    findings, _ = validate(TWO)
    assert findings == {f"{n}.glb": [f"warning SEEN: glb 0 {text} (/)"] for n, text in (("a", "one"), ("b", "two"))}


def test_written_files_pass_the_validator() -> None:
    mesh, textures = textured()
    part = hull(mesh.vertices)
    findings, status = validate(
        {
            "ball.glb": textured_glb_bytes(mesh, files(textures), "ball", {"prompt": "a ball"}),
            "ball_collision_unreal.glb": plain_glb_bytes({"UCX_ball_00": part}, {"collider_of": "ball"}),
        }
    )
    if not findings:
        pytest.skip(status)
    assert findings == {"ball.glb": [], "ball_collision_unreal.glb": []}


@unix
def test_export_reports_findings_and_failures(tmp_path: Path, monkeypatch, caplog) -> None:
    register(monkeypatch)
    run = ball_run(tmp_path / "run")
    words = ["--config", "export", f"run={run}", *SMALL, "lods=[]", "collision=none"]
    fake_node(tmp_path / "bin", monkeypatch, f"cat <<'END'\n[{FAULTY}]\nEND")
    assert cli.main(words) == 0
    manifest, name = asset_manifest(run), "a_ball_with_a_knob.glb"
    assert [text.split()[1] for text in manifest["findings"][name]] == ["ACCESSOR_INDEX_OOB:", "NODE_EMPTY:"]
    assert manifest["notes"][0].startswith(f"{name}: error ACCESSOR_INDEX_OOB") and manifest["notes"][0] in caplog.text
    fake_node(tmp_path / "bin", monkeypatch, "exit 1")
    assert cli.main(words) == 0
    manifest = asset_manifest(run)
    assert "code 1" in manifest["khronos"] and manifest["notes"] == []
