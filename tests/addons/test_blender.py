import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trimesh

from tests.support.example_run import asset_glb
from tests.support.studio import FAILURE, TOKEN, Client, studio
from tests.support.waiting import when
from threedgen import __version__

ROOT = Path(__file__).parents[2]
BLENDER = os.environ.get("BLENDER_PYTHON", sys.executable)  # Python with the package bpy


spec = importlib.util.spec_from_file_location("blender_client", ROOT / "addons" / "blender" / "client.py")
assert spec and spec.loader
addon: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(addon)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(addon, "POLL_SECONDS", 0.02)
    with studio(tmp_path, monkeypatch) as opened:
        (tmp_path / "source" / "textured.glb").write_bytes(asset_glb((1, 0, 0)))
        yield opened


def plain_address(server: Client) -> str:
    return server.url.removesuffix(f"{TOKEN}/")


def make(server: Client, prompt: str, **values: Any) -> Any:
    job = addon.Job(addon.Studio(server.url), prompt, **values)
    if values.get("source"):
        job.mesh.write_bytes(asset_glb((0, 0, 1)))
    job.start()
    job.join()
    return job


@pytest.mark.parametrize("prompt", ["a blue dog", "a 'red'  \"dog\" & caf\u00e9?"])
def test_prompt_becomes_a_file(server: Client, prompt: str) -> None:
    job = make(server, prompt, seed=3, height=0.5)
    assert job.error == "" and job.file.read_bytes() == asset_glb((0, 0, 1))
    assert server.queue.jobs()[0].seed == 3 and job.order["export"]["height"] == 0.5


@pytest.mark.parametrize("name", ["Cube", 'My "odd" chair / c\u00f4ne', "..", "#1?"])
def test_mesh_is_uploaded_and_its_textured_file_comes_back(server: Client, name: str) -> None:
    job = make(server, "a red chair", source=name)
    assert job.error == "" and job.file.read_bytes() == asset_glb((1, 0, 0))
    (stored,) = (server.root / "uploads").iterdir()
    assert stored.read_bytes() == asset_glb((0, 0, 1)) and stored.name == job.order["mesh"]


def test_cancel_ends_the_thread_and_the_run(server: Client) -> None:
    job = addon.Job(addon.Studio(server.url), "it waits")
    job.start()
    when(lambda: job.progress.fraction)
    assert str(job.progress) == "distilling at 64 px, 25 %, 6 s left"
    job.cancel()
    job.join(10)
    assert not job.is_alive() and (job.file, job.error) == (None, "")
    server.until(["cancelled"])


@pytest.mark.parametrize(("prompt", "error"), [("it fails", FAILURE), ("it dies", "signal 9"), (" ", "prompt")])
def test_errors_of_the_studio_are_passed_on(server: Client, prompt: str, error: str) -> None:
    job = make(server, prompt)
    assert error in job.error and job.file is None


@pytest.mark.parametrize("token", ["", "wrong", "w\u00f6rt\r\nHost: x"])
def test_wrong_token_names_the_preferences(server: Client, token: str) -> None:
    connection = addon.Studio(plain_address(server), token)
    with pytest.raises(addon.StudioError, match="token"):
        connection.request("GET", "jobs")
    assert addon.Studio(plain_address(server), TOKEN).json("GET", "jobs")["jobs"] == []


def test_server_that_does_not_run_and_invalid_addresses_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(addon.StudioError, match=f"127.0.0.1:{port}"):
        addon.Studio(f"127.0.0.1:{port}/{TOKEN}").request("GET", "jobs")
    for address in ("", "ftp://x", "http://", "http://a:b", "http://[", "studio:99999"):
        with pytest.raises(addon.StudioError, match="address"):
            addon.Studio(address)


@pytest.mark.parametrize("status", [200, 404])
def test_other_server_is_no_studio(status: int) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *values: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(addon.StudioError, match="studio"):
            addon.Studio(f"http://127.0.0.1:{other.server_port}").json("GET", "jobs")
        other.shutdown()


@pytest.fixture
def zip_file(tmp_path: Path) -> Path:
    """The add-on as `make blender` packs it."""
    if not shutil.which("make"):
        pytest.skip("no make")
    for part in ("Makefile", "addons"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    subprocess.run(["make", "-s", "blender", f"PYTHON={sys.executable}"], cwd=tmp_path, check=True)
    return tmp_path / "dist" / "threedgen-blender.zip"


def test_manifest_has_the_version_of_the_package(zip_file: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(zip_file, tmp_path / "unpacked")
    manifest = tomllib.loads((tmp_path / "unpacked" / "blender_manifest.toml").read_text(encoding="utf-8"))
    assert manifest["version"] == __version__
    assert all(len(reason) <= 64 for reason in manifest["permissions"].values()), "a longer one is refused"
    names = {path.name for path in (tmp_path / "unpacked").iterdir()}
    assert {"__init__.py", "client.py", "scene.py"} < names


def test_add_on_in_blender(server: Client, zip_file: Path, tmp_path: Path) -> None:
    if BLENDER == sys.executable and not importlib.util.find_spec("bpy"):
        pytest.skip("no Blender here: set BLENDER_PYTHON to a Python with bpy")
    script, out = ROOT / "tests" / "support" / "blender_session.py", tmp_path / "out.json"
    command = [BLENDER, str(script), str(zip_file), plain_address(server), TOKEN, str(out)]
    user = tmp_path / "user"
    user.mkdir()
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(user)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    cursor = [1.0, 2.0, 3.0]
    assert found["prompt"]["result"] == ["FINISHED"]
    assert (found["prompt"]["location"], found["prompt"]["scale"]) == (cursor, [2.0] * 3), "metres at unit scale 0.5"
    assert found["cancelled"]["result"] == ["CANCELLED"] and found["cancelled"]["idle"]
    assert "distilling at 64 px, 25 %, 6 s left" in found["cancelled"]["seen"]
    assert found["modal"]["result"] == ["FINISHED"] and len(found["modal"]["reports"]) == 1
    assert found["texture"] == {
        "result": ["FINISHED"], "name": 'My "odd"/c\u00f4ne textured', "location": cursor, "scale": [1.0] * 3
    }  # fmt: skip
    assert found["cube"]["location"] == [-3.0, 0.0, 1.0]
    (stored,) = (server.root / "uploads").iterdir()
    bounds = trimesh.load(stored, force="mesh").bounds
    assert bounds[0][0] == pytest.approx(-2) and bounds[1][0] == pytest.approx(10), (
        "three cubes, the first at the origin"
    )
    states = [job.state for job in server.queue.jobs()]
    assert states == ["finished", "cancelled", "finished", "finished", "failed"]
    for step, part in (
        ("none selected", "mesh"), ("fails", FAILURE), ("empty", "prompt"), ("token", "token"),
        ("server", "127.0.0.1:9"), ("offline", "Online Access"),
    ):  # fmt: skip
        assert part in found[step]["error"], step
    assert found["disabled"]
