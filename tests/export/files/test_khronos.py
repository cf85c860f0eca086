"""The Khronos validator: what it says reaches the asset, and its absence is no clean bill."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.ball_run import SMALL, ball_run, register
from tests.support.textured_box import files, textured
from threedgen import cli
from threedgen.export.files import khronos
from threedgen.export.files.check import Finding
from threedgen.export.files.glb import plain_glb_bytes, textured_glb_bytes
from threedgen.export.files.khronos import NoAnswer, validate
from threedgen.export.shape.collider import hull

unix = pytest.mark.skipif(os.name == "nt", reason="needs a shell")
TWO = {"a.glb": b"one", "b.glb": b"two"}
CLEAN = '{"validatorVersion": "9", "issues": {"messages": []}}'
FAULTY = """{"validatorVersion": "9", "issues": {"messages": [
    {"severity": 0, "code": "ACCESSOR_INDEX_OOB", "message": "too far", "pointer": "/accessors/0"},
    {"severity": 1, "code": "NODE_EMPTY", "message": "empty", "pointer": "/nodes/0"},
    {"severity": 2, "code": "UNUSED_OBJECT", "message": "unused", "pointer": "/meshes/0"}]}}"""


def fake_node(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `node` that comes first on the PATH and does what the shell script says."""
    folder.mkdir(exist_ok=True)
    (folder / "node").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@unix
def test_errors_and_warnings_become_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_node(tmp_path, monkeypatch, f"cat <<'END'\n[{CLEAN}, {FAULTY}]\nEND")
    found, said = validate(TWO)
    error = Finding("error", "ACCESSOR_INDEX_OOB", "too far (/accessors/0)")
    assert found == {"a.glb": [], "b.glb": [error, Finding("warning", "NODE_EMPTY", "empty (/nodes/0)")]}
    assert said == "version 9: 1 errors and 1 warnings in 2 files"


@unix
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken >&2; exit 3", "node ended with code 3: broken"),
        ("echo no json", "Expecting value"),
        ("echo '[]'", "cannot be read"),
        ("echo '[{}, {}]'", "cannot be read"),
        ("exec sleep 20", "more than"),
    ],
)
def test_a_validator_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(khronos, "PATIENCE", 0.3)
    fake_node(tmp_path, monkeypatch, script)
    with pytest.raises(NoAnswer, match=said):
        validate(TWO)


@unix
def test_without_node_or_its_package_nobody_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_node(tmp_path, monkeypatch, "echo null")
    assert validate(TWO) == ({}, "not here: node has no package gltf-validator (npm install -g gltf-validator)")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert validate(TWO) == ({}, "not here: there is no node")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_node_gives_the_package_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "node_modules" / "gltf-validator"
    package.mkdir(parents=True)
    (package / "index.js").write_text(
        "exports.validateBytes = async (bytes, { format, maxIssues }) => ({ validatorVersion: '9', issues: {"
        "messages: [{ severity: 1, code: 'SEEN', message: `${format} ${maxIssues} ${Buffer.from(bytes)}`,"
        "pointer: '/' }] } });"
    )
    monkeypatch.chdir(tmp_path)
    found, _ = validate(TWO)
    assert [finding.message for part in found.values() for finding in part] == ["glb 0 one (/)", "glb 0 two (/)"]


def test_what_the_exporter_writes_is_valid() -> None:
    mesh, textures = textured()
    part = hull(mesh.vertices)
    found, said = validate(
        {
            "ball.glb": textured_glb_bytes(mesh, files(textures), "ball", {"prompt": "a ball"}),
            "ball_collision_unreal.glb": plain_glb_bytes({"UCX_ball_00": part}, {"collider_of": "ball"}),
        }
    )
    if not found:
        pytest.skip(said)
    assert "0 errors and 0 warnings in 2 files" in said, found


@unix
def test_strict_fails_for_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch)
    run = ball_run(tmp_path / "run")
    words = ["--config", "export", f"run={run}", *SMALL, "lods=[]", "collision=none"]
    fake_node(tmp_path / "bin", monkeypatch, f"cat <<'END'\n[{FAULTY}]\nEND")
    assert cli.main([*words, "strict=true"]) == 2 and not (run / "asset").exists()
    said = capsys.readouterr().err
    assert "strict: the asset was not written: a_ball_with_a_knob.glb: too far (/accessors/0)" in said
    fake_node(tmp_path / "bin", monkeypatch, "exit 1")
    assert cli.main(words) == 0 and "Khronos validator: did not answer: node ended" in capsys.readouterr().out
    told = json.loads((run / "asset" / "asset.json").read_text())
    assert told["khronos"].startswith("did not answer: node ended") and told["notes"] == []
