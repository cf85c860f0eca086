import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.errors import full_disk, refused
from tests.support.example_run import Page, asset_glb
from tests.support.marks import unix
from tests.support.studio import FAILURE, TOKEN, Client, finished_run, studio
from tests.support.studio_load import load as load_of_clients
from tests.support.task_server import tiny_generate
from tests.support.waiting import when
from threedgen import cli
from threedgen.config import load, plugins
from threedgen.export.options import PRESETS, AssetConfig
from threedgen.run.folder import write_config
from threedgen.run.interrupts import Interrupts
from threedgen.studio import job_queue, server, state
from threedgen.studio.job_queue import Conflict, Queue, start_process
from threedgen.studio.jobs import export_job, make_job
from threedgen.studio.options import StudioConfig
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.novel_view.options import ImageTo3DConfig
from threedgen.systems.texture.options import TextureConfig

DOCS = Path(__file__).parents[2] / "docs" / "studio.md"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with studio(tmp_path, monkeypatch) as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/api/v1/jobs", {"Authorization": "Bearer wrong"}),
        (f"/{TOKEN}/api/v1/jobs", {"Host": "evil.example:8090"}),  # DNS rebinding
        (f"/{TOKEN}/api/v1/jobs", {"Host": "10.0.0.1:8090"}),
        (f"/{TOKEN}/api/v1/jobs", {"Origin": "null"}),
        (f"/{TOKEN}/api/v1/jobs", {"Origin": "http://127.0.0.1:1"}),
        ("/api/v1/jobs", {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}),
    ],
)
def test_foreign_requests_are_forbidden(client: Client, path: str, headers: dict[str, str]) -> None:
    for body in (None, {"prompt": "a dog"}):
        answer = client.ask(path, body, **headers)
        has_token = TOKEN in path + str(headers)
        assert answer.status == (403 if has_token else 401) and json.loads(answer.read())["error"]
        assert answer.getheader("WWW-Authenticate") == (None if has_token else "Bearer")
        assert answer.getheader("Access-Control-Allow-Origin") is None
    assert client.states() == []


def test_token_in_path_or_header_admits(client: Client) -> None:
    for headers in ({}, {"Host": "localhost:9000", "Origin": "http://localhost:9000"}):
        assert client.ask(f"/{TOKEN}/api/v1/jobs", **headers).status == 200
        assert client.ask("/api/v1/jobs", Authorization=f"Bearer {TOKEN}", **headers).status == 200


def test_other_hosts_need_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THREEDGEN_TOKEN", raising=False)
    with refused(None, "host", "0.0.0.0"):
        StudioConfig(task="studio", host="0.0.0.0").check()
    with refused(None, "token"):
        load("studio", ["token=short"])
    for value, key in (("short", "token"), ("", "host")):
        monkeypatch.setenv("THREEDGEN_TOKEN", value)
        with refused(None, key):
            StudioConfig(task="studio", host="0.0.0.0").check()
    monkeypatch.setenv("THREEDGEN_TOKEN", TOKEN)
    config = StudioConfig(task="studio", host="0.0.0.0", port=0)
    config.check()
    with refused(None, "host", "no.such.name"):
        server.listen(config.model_copy(update={"host": "no.such.name"}))
    for name in ("gethostname", "getfqdn"):
        monkeypatch.setattr(socket, name, lambda: "DESKTOP-AB12")
    with studio(tmp_path, monkeypatch, config) as client:
        hosts = {"10.1.2.3:80": 200, "[::1]:80": 200, "DESKTOP-AB12:80": 200, "desktop-ab12": 200, "evil.example": 403}
        for host, status in hosts.items():
            assert client.ask(f"/{TOKEN}/api/v1/jobs", Host=host).status == status
            assert client.ask("/api/v1/jobs", Host=host).status == 401
        forged = {"Host": "10.1.2.3:80", "Origin": "http://10.1.2.4:80"}
        assert client.ask(f"/{TOKEN}/api/v1/jobs", **forged).status == 403


def test_task_serves_until_ctrl_c_and_warns_of_other_hosts(tmp_path: Path, monkeypatch, caplog, capsys) -> None:
    interrupts = Interrupts()
    interrupts.stop = True
    monkeypatch.setattr(server, "Interrupts", lambda note: interrupts)
    for host in ("127.0.0.1", "0.0.0.0"):
        assert server.run(StudioConfig(task="studio", host=host, port=0, token=TOKEN, out=str(tmp_path / "runs"))) == 0
        assert TOKEN in capsys.readouterr().out
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "0.0.0.0" in warning


def test_pages_refer_to_themselves_only(client: Client) -> None:
    for path in ("", "api/v1/"):
        answer = client.ask(path)
        page = Page(answer.read().decode())
        assert all(not address.startswith(("http", "//")) for address in page.addresses())
        assert answer.getheader("Content-Security-Policy") == "frame-ancestors 'self'"
        policy = next(given["content"] for _, given in page.attributes if "http-equiv" in given)
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.getheader("Cache-Control") == "no-store"
        assert answer.getheader("X-Content-Type-Options") == "nosniff"


def test_forms_of_foreign_pages_change_nothing(client: Client) -> None:
    finished_run(client.root / "one")
    forged = {"Content-Type": "text/plain", "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    for path, method in (("jobs", "POST"), ("runs/one/export", "POST"), ("runs/one", "DELETE"), ("files/a.png", "PUT")):
        for where, code in ((f"/{TOKEN}/api/v1/{path}", 403), (f"/api/v1/{path}", 401)):
            assert client.ask(where, b'{"prompt": "a dog"}', method, **forged).status == code
    answer = client.ask("api/v1/jobs", method="OPTIONS", Origin="http://evil.example")  # the preflight of other types
    assert answer.status == 403 and answer.getheader("Access-Control-Allow-Methods") is None
    assert client.states() == [] and len(client.api("runs")) == 1 and not (client.root / "uploads").exists()


def test_every_path_is_documented_and_names_its_methods(client: Client) -> None:
    table = "\n".join(line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    for path in client.api("openapi.json")["paths"]:
        name = path.removeprefix("/api/v1/")
        for field, word in (("{name}/files/{file}", "RUN/files/FILE"), ("runs/{name}", "runs/RUN"), ("{name}", "NAME"),
                            ("{number}", "N")):  # fmt: skip
            name = name.replace(field, word)
        assert re.search(rf"[ `]{re.escape(name)}[`?]", table), f"{name} is not documented"
    allowed = {"jobs": "GET, POST", "jobs/1": "DELETE, GET", "runs/one": "DELETE, GET", "runs/one/image": "GET"}
    for path, methods in allowed.items():
        answer = client.ask(f"api/v1/{path}", method="PATCH")
        assert answer.status == 405 and answer.getheader("Allow") == methods, path


def test_prompt_becomes_a_run_and_a_download(client: Client) -> None:
    job = client.api("jobs", {"prompt": "  a blue   dog ", "seed": 3})
    client.until(["finished"])
    job = client.api(f"jobs/{job['number']}")
    assert (job["prompt"], job["seed"], job["finished"]) == ("a blue dog", 3, True)
    assert job["progress"]["phase"] == "distilling at 64 px" and job["progress"]["left"] == "6 s"
    (run,) = client.api("runs")
    assert (run["name"], run["early"], run["report"]) == (job["run"], False, True)
    assert client.api(f"runs/{job['run']}")["files"]["asset/square.glb"] == len(asset_glb((0, 0, 1)))
    answer = client.ask(f"api/v1/runs/{job['run']}/files/asset/square.glb")
    assert answer.read() == asset_glb((0, 0, 1)) and answer.getheader("Content-Type") == "model/gltf-binary"
    page = client.ask(f"api/v1/runs/{job['run']}/view")
    assert Page(page.read().decode()).decoded("mesh") == asset_glb((0, 0, 1))
    assert page.getheader("Content-Security-Policy") == "sandbox allow-scripts allow-downloads"
    assert client.ask(f"api/v1/runs/{job['run']}/image").read(2) == b"\xff\xd8"


def test_jobs_run_one_at_a_time_and_can_be_removed(client: Client) -> None:
    for prompt in ("it waits", "a cat", "a dog"):
        client.submit(prompt)
    client.until(["running", "waiting", "waiting"])
    assert client.api("jobs", {"prompt": "a cat"})["error"] and len(client.states()) == 3
    assert client.ask("api/v1/jobs/1", method="DELETE").status == 409
    assert client.ask("api/v1/jobs/2", method="DELETE").status == 204
    client.until(["running", "waiting"])
    (client.root / "it-waits-0.go").touch()
    client.until(["finished", "finished"])
    assert client.queue.runs_version == 2
    client.api("jobs/1", method="DELETE")
    client.until(["finished"])
    assert len(client.api("runs")) == 2


@unix
@pytest.mark.parametrize("prompt", ["it waits", "stubborn, it waits", "frozen, it waits"])
def test_cancel_ends_any_run_within_two_seconds(client: Client, prompt: str) -> None:
    client.submit(prompt)
    client.submit("a cat")
    client.progressed(1)
    if "frozen" in prompt:
        assert client.queue._process is not None
        os.kill(client.queue._process.pid, signal.SIGSTOP)
    start = time.monotonic()
    client.api("jobs/1/cancel", {})
    when(lambda: client.states()[0] == "cancelled")
    assert time.monotonic() - start < 2.5
    client.until(["cancelled", "finished"])
    assert client.queue.jobs()[0].error == "" and [run["prompt"] for run in client.api("runs")] == ["a blue dog"]


WATCHED = "from threedgen.run import interrupts; {}interrupts.end_with_parent(); import time; time.sleep(100)"
WINDOWS = "import os, types; interrupts.os = types.SimpleNamespace(**vars(os) | {'name': 'nt', 'kill': None}); "


@unix
@pytest.mark.parametrize("system", ["", WINDOWS], ids=["posix", "windows"])
def test_run_ends_when_its_studio_is_killed(system: str) -> None:
    process = start_process([sys.executable, "-c", WATCHED.format(system)])
    assert process.stdin is not None and process.poll() is None
    process.stdin.close()  # as the system does for a killed process
    assert process.wait(60) == -signal.SIGTERM


@unix
def test_runs_on_windows_get_the_chance_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queue, "os", SimpleNamespace(**vars(os) | {"name": "nt"}))
    monkeypatch.setattr(subprocess.Popen, "terminate", subprocess.Popen.kill)  # as there
    queue = Queue(tmp_path)
    queue._process = process = start_process([sys.executable, "-c", WATCHED.format("")])
    queue._terminate()
    assert process.wait(60) == -signal.SIGTERM


def test_job_that_was_cancelled_and_continued_runs_once(client: Client) -> None:
    """While it waited, and at once."""
    for prompt in ("it waits", "a cat"):
        client.submit(prompt)
    client.until(["running", "waiting"])
    for _ in range(3):
        client.api("jobs/2/cancel", {})
        client.api("jobs/2/again", {})
    client.submit("a dog")
    (client.root / "it-waits-0.go").touch()
    client.until(["finished", "finished", "finished"])
    assert client.queue.runs_version == 3
    number = client.submit("this waits")
    client.api(f"jobs/{number}/cancel", {})
    client.until(["finished"] * 3 + ["cancelled"])
    assert client.queue.jobs()[-1].error == ""
    client.submit("this waits")  # again: it continues
    (client.root / "this-waits-0.go").touch()
    client.until(["finished"] * 4)


def test_finish_makes_the_asset_of_a_running_or_cancelled_job(client: Client) -> None:
    client.submit("it waits")
    client.progressed()
    assert client.api("jobs/1/finish", {})["state"] == "finishing"
    client.until(["finished"])
    client.submit("another waits")
    client.progressed()
    client.api("jobs/2/cancel", {})
    client.until(["finished", "cancelled"])
    assert len(client.api("runs")) == 1
    client.api("jobs/2/finish", {})
    client.until(["finished", "finished"])
    assert client.ask("api/v1/jobs/2/finish", {}).status == 409


def test_failed_jobs_report_their_error_and_the_next_one_runs(client: Client) -> None:
    for prompt in ("it fails", "it dies", "nul\0"):
        client.submit(prompt)
    client.submit("a cat")
    client.until(["failed", "failed", "failed", "finished"])
    errors = [job["error"] for job in client.api("jobs")["jobs"]]
    assert errors[0] == FAILURE and "signal 9" in errors[1] and "null byte" in errors[2]


def test_job_numbers_are_not_reused_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with studio(tmp_path, monkeypatch) as client:
        assert [client.submit(prompt) for prompt in ("nul\0", "it fails")] == [1, 2]  # the first one has no run folder
        client.until(["failed", "failed"])
        client.api("jobs/2", method="DELETE")
    with studio(tmp_path, monkeypatch) as client:
        assert client.submit("a cat") == 3
        assert client.ask("api/v1/jobs/1").status == 404 and client.api("jobs/3")["prompt"] == "a cat"


def test_events_report_each_change(client: Client) -> None:
    stream = client.ask("api/v1/events")
    assert stream.getheader("Content-Type", "").startswith("text/event-stream")

    def next_event() -> Any:
        while not (line := stream.readline().decode()).startswith("data:"):
            assert line, "the stream has ended"
        return json.loads(line.removeprefix("data:"))

    assert next_event() == {"jobs": [], "over": 0}
    client.submit("it waits")
    while not (event := next_event())["jobs"] or not event["jobs"][0]["progress"]:
        pass
    assert event["jobs"][0]["state"] == "running" and event["jobs"][0]["image"] == ""
    finished_run(client.root / event["jobs"][0]["run"])
    image = next_event()["jobs"][0]["image"]
    assert client.ask(f"api/v1/runs/it-waits-0/files/{image}").read().startswith(b"\x89PNG")
    (client.root / "it-waits-0.go").touch()
    while not (event := next_event())["over"]:
        pass
    assert event["jobs"][0]["finished"]


def test_two_hundred_clients_are_served_together(client: Client) -> None:
    finished_run(client.root / "one")
    client.submit("it waits")
    client.progressed()
    before = len(os.listdir("/proc/self/fd"))
    result = load_of_clients(client.url, "one")
    assert result.unexpected == [] and len(result.seconds) == 701
    assert len(result.events) == 100 and min(result.events) > 1
    assert result.quantile(0.5) < 10, "seconds, on a busy machine"
    (client.root / "it-waits-0.go").touch()
    when(lambda: client.queue.jobs()[0].state == "finished")
    when(lambda: len(os.listdir("/proc/self/fd")) < before + 10)


def test_runs_can_be_exported_again_and_deleted(client: Client) -> None:
    finished_run(client.root / "deep" / "one", prompt="a <b>cat</b>")
    (run,) = client.api("runs")
    assert (run["name"], run["prompt"], run["can_export"]) == ("deep/one", "a <b>cat</b>", True)
    assert client.ask("api/v1/runs/deep/one/view").status == 200
    assert "height" in client.api("runs/deep/one/export", {"height": -1})["error"]
    assert client.ask("api/v1/runs/deep/one", method="DELETE").status == 204
    assert client.api("runs") == [] and not (client.root / "deep" / "one").exists()
    client.submit("it waits")
    client.progressed()
    (client.root / "it-waits-0" / "config.yaml").write_text("task: generate\n")
    assert client.ask("api/v1/runs/it-waits-0", method="DELETE").status == 409


@pytest.mark.parametrize(
    "path",
    ["../source/files/mesh.glb", "%2e%2e/source/files/mesh.glb", "one/files/../../source/mesh.glb", "one/files/asset",
     "one/files/link", "link/files/mesh.glb", "one/files/a%00b", "one/files/" + "x" * 5000, "%00/image",
     "/etc/files/passwd"],
)  # fmt: skip
def test_files_outside_the_runs_are_not_found(client: Client, path: str) -> None:
    finished_run(client.root / "one")
    (client.root / "link").symlink_to(client.root.parent / "source")
    (client.root / "one" / "link").symlink_to(client.root.parent / "source" / "mesh.glb")
    assert client.ask(f"api/v1/runs/{path}").status == 404


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"x" * 70_000, {"prompt": 3}, {"prompt": "  "}, {"prompt": "a dog", "seed": -1},
     {"other": 1}, {"prompt": "a dog", "image": "../../etc/passwd"},
     {"prompt": "a dog", "export": {"preset": "giant"}}],
)  # fmt: skip
def test_invalid_requests_are_refused(client: Client, body: object) -> None:
    answer = client.ask("api/v1/jobs", body, method="POST")
    expected = {b"\xff": 400, b"x" * 70_000: 413}.get(body, 422) if isinstance(body, bytes) else 422
    assert answer.status == expected and json.loads(answer.read())["error"]
    assert client.states() == []


def test_uploads_are_kept_under_plain_names_and_failures_of_the_disk_are_reported(client: Client, monkeypatch) -> None:
    answer = client.ask("api/v1/files/My%20chair.glb", asset_glb((0, 0, 1)), method="PUT")
    name = json.loads(answer.read())["name"]
    assert name.endswith("My-chair.glb") and (client.root / "uploads" / name).exists()
    assert client.ask("api/v1/files/a.exe", b"MZ", method="PUT").status == 422
    finished_run(client.root / "one")
    monkeypatch.setattr(state, "write_atomic", full_disk)
    monkeypatch.setattr(shutil, "rmtree", full_disk)
    for path, data, method in (("files/a.png", b"x", "PUT"), ("runs/one", None, "DELETE")):
        answer = client.ask(f"api/v1/{path}", data, method=method)
        assert answer.status == 500 and os.strerror(errno.ENOSPC) in json.loads(answer.read())["error"]


@pytest.fixture
def orders(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Studio with the run "one", the uploads photo.png and chair.glb, and real commands of its jobs."""
    finished_run(client.root / "one", prompt="a dog")
    for name in ("photo.png", "chair.glb"):
        client.ask(f"api/v1/files/{name}", asset_glb((0, 0, 1)), method="PUT")
    monkeypatch.setattr(state, "make_job", make_job)
    for kind in (GenerateConfig, ImageTo3DConfig, TextureConfig):
        monkeypatch.setattr(kind, "check", lambda self: None)  # the files are not real ones
    return client


def upload(client: Client, name: str) -> Path:
    return next((client.root / "uploads").glob(f"*{name}"))


def body(client: Client, order: dict[str, Any]) -> dict[str, Any]:
    """Return an order with the stored names of its uploads."""
    stored = {key: upload(client, order[key]).name for key in ("image", "mesh") if key in order}
    return {"prompt": "a dog"} | order | stored


def command(client: Client, order: dict[str, Any]) -> tuple[str, list[str]]:
    """Submit an order; return the name of its run and its command."""
    name, job = client.api("jobs", body(client, order))["run"], client.queue.jobs()[-1]
    client.queue.cancel(job)
    return name, job.command


def test_edit_mesh_and_asset_options_become_commands(orders: Client) -> None:
    _, words = command(orders, {"edit": "one", "prompt": "a dog wearing a hat", "seed": 2})
    assert {"edit-toybox", f"edit={orders.root / 'one'}", "prompt=a dog wearing a hat", "seed=2"} < set(words)
    _, words = command(orders, {"mesh": "chair.glb", "prompt": "a red chair"})
    assert {"texture-toybox", f"mesh={upload(orders, 'chair.glb')}", "prompt=a red chair"} < set(words)
    assert [job["can_export"] for job in orders.api("jobs")["jobs"]] == [True, False]
    options = {"preset": "prop", "height": 0.4, "formats": ["glb", "obj"], "palette": "red,teal"}
    expected = {"export.preset=prop", "export.height=0.4", 'export.formats=["glb", "obj"]', "export.palette=red,teal"}
    for order in ({"edit": "one"}, {"image": "photo.png", "prompt": ""}):
        plain, words = command(orders, order)
        assert "export." not in str(words)
        changed, words = command(orders, order | {"export": options})
        assert expected < set(words) and changed != plain, "other options make another run"


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ({"edit": "../one"}, 404),
        ({"edit": ""}, 422),
        ({"edit": "one", "seed": -1}, 422),
        ({"mesh": "chair.glb", "export": {"height": 0.4}}, 422),
        ({"export": {"palette": "/etc/passwd"}}, 422),  # a request names no file of this machine
        ({"export": {"palette": "board.png"}}, 422),
    ],
)
def test_impossible_orders_are_refused(orders: Client, order: dict[str, Any], status: int) -> None:
    answer = orders.ask("api/v1/jobs", body(orders, order), method="POST")
    assert answer.status == status and json.loads(answer.read())["error"] and orders.states() == []


def test_prompt_words_are_checked(client: Client) -> None:
    found = client.api("words?prompt=a%20red%20corgi")
    assert [(word["word"], word["known"]) for word in found["words"]] == [
        ("a", False),
        ("red", False),
        ("corgi", False),
    ]
    assert found["words"][2]["near"] == ["dog"] and {"dog", "car", "chair"} < set(found["nouns"])
    found = client.api("words?prompt=a%20wooden%20chair%20with%20a%20shiny%20hat")
    effects = {word["word"]: word["material"] for word in found["words"] if not word["known"]}
    assert effects == {"wooden": True, "shiny": False}, "the hat has no material of its own"
    assert not any("wooden" in note and "receives" not in note for note in found["notes"])
    found = client.api("words?prompt=a%20red%20hel")
    assert found["typed"] == "hel" and found["nouns"] == ["helicopter"]
    assert [word["word"] for word in found["words"] if word["known"]] == ["a", "red"]
    found = client.api("words?prompt=a%20puppy%20on%20a%20red%20sofa%20without%20a%20hat")
    assert [word["word"] for word in found["words"] if word["known"]] == ["a", "puppy"]
    assert all(any(part in note for note in found["notes"]) for part in ("'puppy'", "'sofa'", "'hat'", "'a dog'"))
    assert not any("negative_prompt" in note for note in found["notes"]), "an order has no such field"


@pytest.mark.parametrize("language", ["python", "bash"])
def test_documented_client_makes_an_object(client: Client, tmp_path: Path, language: str) -> None:
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    if language == "bash" and not shutil.which("curl"):
        pytest.skip("no curl")
    command = [sys.executable, "-c", block] if language == "python" else ["bash", "-ec", block]
    environment = os.environ | {"STUDIO": client.url.rstrip("/")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "square.glb").read_bytes() == asset_glb((0, 0, 1))


def test_options_of_a_request_replace_those_of_the_studio(tmp_path: Path) -> None:
    tiny = tiny_generate(tmp_path)
    job = make_job(StudioConfig(task="studio", config=str(tiny)), tmp_path, "a dog", 3)
    assert job.state == "waiting" and job.command[-3:] == ["prompt=a dog", "seed=3", f"out={tmp_path / job.name}"]
    config = StudioConfig(task="studio", config=f"{tiny} export.budget=2000", overrides=("export.height=1",))
    exports = (None, AssetConfig(height=2), AssetConfig(height=3), AssetConfig(budget=3000))
    jobs = [make_job(config, tmp_path, "a dog", 3, export) for export in exports]
    own = [[word for word in job.command if word.startswith("export.")] for job in jobs]
    assert own[0] == ["export.height=1", "export.budget=2000"] and own[1] == ["export.budget=2000", "export.height=2.0"]
    assert len({job.name for job in jobs}) == 4 and own[3] == ["export.height=1", "export.budget=3000"]
    hero = cli.parse(make_job(config, tmp_path, "a dog", 3, AssetConfig(preset="hero")).command[3:])
    assert load(hero.config, hero.overrides).export.sizes == PRESETS["hero"]


def test_export_jobs_cannot_be_finished_early_and_all_import_the_plugins(tmp_path: Path, monkeypatch) -> None:
    tiny = str(tiny_generate(tmp_path))
    (tmp_path / "one" / "checkpoints").mkdir(parents=True)
    (tmp_path / "one" / "checkpoints" / "last.ckpt").touch()
    write_config(tmp_path / "one", load(tiny, ["prompt=a dog"]))
    job, queue = export_job(tmp_path, "one", AssetConfig(height=2)), Queue(tmp_path)
    for name in ("running", "cancelled"):
        job.state = name
        assert not queue.can_finish(job) and queue.can_finish(replace(job, task="generate"))
        with pytest.raises(Conflict):
            queue.finish(job)
    queue.close()
    monkeypatch.setattr(plugins, "LOADED", {"plugin_mine_0": plugins.Plugin(tmp_path / "mine.py", "")})
    made = make_job(StudioConfig(task="studio", config=tiny), tmp_path, "a dog")
    for job in (made, export_job(tmp_path, "one", AssetConfig(height=2))):
        assert cli.parse(job.command[3:]).flags[plugins.FLAG] == str(tmp_path / "mine.py")


def test_invalid_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for override, parts in (
        (f"out={tmp_path / 'file'}", ("out: ", str(tmp_path / "file"))),
        ("config=gallery", ("config: ", "gallery")),
        ("overrides=[prompt=a]", ("overrides: ", "prompt")),
    ):
        assert cli.main(["--config", "studio", override]) == 2
        error = capsys.readouterr().err
        assert all(part in error for part in parts)
    assert load("studio").config == "quick-toybox"


@pytest.mark.slow
def test_real_run_with_a_tiny_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prompt submitted again is finished at once."""
    config = StudioConfig(task="studio", config=str(tiny_generate(tmp_path)), port=0)
    with studio(tmp_path, monkeypatch, config) as client:
        client.submit("a red dog")
        when(lambda: client.states()[0] in ("finished", "failed"), seconds=600)
        (job,) = client.queue.jobs()
        assert job.state == "finished", job.error
        assert job.progress["done"] == job.progress["total"]
        assert (client.root / job.name / "report.html").exists() and client.api("runs")[0]["prompt"] == "a red dog"
        client.submit("a red dog")
        assert client.states() == ["finished"] and client.queue.runs_version == 1
