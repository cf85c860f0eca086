"""Studio without a browser: access control, queue, prompt check, events and files of the runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.errors import refused
from tests.support.example_run import Page, asset_glb
from tests.support.studio import FAILURE, LINE, Client, finished_run, studio
from tests.support.task_server import tiny_generate
from tests.support.waiting import when
from threedgen import cli
from threedgen.config import load
from threedgen.studio.jobs import make_job
from threedgen.studio.options import StudioConfig
from threedgen.viewer.local import REFUSAL


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with studio(tmp_path, monkeypatch) as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/", {}), ("/the-key/", {"Host": "evil.example:8090"}), ("/the-key/words?prompt=a", {"Origin": "null"})],
)
def test_foreign_requests_are_forbidden(client: Client, path: str, headers: dict[str, str]) -> None:
    for body in (None, {"prompt": "a dog"}):
        answer = client.ask(path, body, **headers)
        assert answer.status == 403 and answer.read().decode() == REFUSAL
    assert client.states() == []


def test_page_policy_blocks_foreign_requests_and_frames(client: Client) -> None:
    answer = client.ask("", Host="localhost:9000", Origin="http://localhost:9000")  # as through an ssh tunnel
    page = Page(answer.read().decode())
    assert all(not address.startswith(("http", "//")) for address in page.addresses())
    assert answer.getheader("Content-Security-Policy") == "frame-ancestors 'self'"
    policy = next(given["content"] for _, given in page.attributes if "http-equiv" in given)
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert answer.getheader("Cache-Control") == "no-store" and answer.getheader("X-Content-Type-Options") == "nosniff"


def test_prompt_becomes_a_run_and_a_download(client: Client) -> None:
    assert client.json("jobs", {"prompt": "  a blue   dog ", "seed": 3}) == {"number": 1}
    client.until(["finished"])
    (job,) = client.queue.jobs()
    assert (job.prompt, job.seed, job.progress["phase"]) == ("a blue dog", 3, "distilling at 64 px")
    answer = client.ask(f"{job.name}/asset/square.glb")
    assert answer.read() == asset_glb((0, 0, 1)) and answer.getheader("Content-Type") == "model/gltf-binary"
    page = client.ask(f"{job.name}/asset")
    assert Page(page.read().decode()).decoded("mesh") == asset_glb((0, 0, 1))
    assert page.getheader("Content-Security-Policy") == "sandbox allow-scripts allow-downloads"


def test_jobs_run_one_at_a_time_and_can_be_removed(client: Client) -> None:
    for prompt in ("it waits", "a cat", "a dog"):
        assert "number" in client.json("jobs", {"prompt": prompt})
    client.until(["running", "waiting", "waiting"])
    assert "a cat" in client.json("jobs", {"prompt": "a cat"})["error"] and len(client.states()) == 3
    client.json("drop", {"number": 2})
    client.until(["running", "waiting"])
    (client.root / "it-waits-0.go").touch()
    client.until(["finished", "finished"])
    assert client.queue.over == 2
    client.json("drop", {"number": 1})
    client.until(["finished"])


def test_stopped_job_resumes_when_submitted_again(client: Client) -> None:
    client.json("jobs", {"prompt": "it waits"})
    when(lambda: client.queue.jobs()[0].progress)
    client.json("drop", {"number": 1})
    client.until(["interrupted"])
    (client.root / "it-waits-0.go").touch()
    client.json("jobs", {"prompt": "it waits"})
    client.until(["finished"])


def test_second_stop_ends_a_job_at_once(client: Client) -> None:
    client.json("jobs", {"prompt": "stubborn, it waits"})
    when(lambda: client.queue.jobs()[0].progress)
    client.json("drop", {"number": 1})
    when(lambda: client.queue.jobs()[0].progress["phase"] == "one more")
    assert client.states() == ["stopping"]
    client.json("drop", {"number": 1})
    client.until(["interrupted"])


def test_failed_jobs_report_their_error_and_the_next_one_runs(client: Client) -> None:
    for prompt in ("it fails", "it dies", "nul\0"):
        client.json("jobs", {"prompt": prompt})
    client.json("jobs", {"prompt": "a cat"})
    client.until(["failed", "failed", "failed", "finished"])
    errors = [job.error for job in client.queue.jobs()]
    assert errors[0] == FAILURE and "signal 9" in errors[1] and "null byte" in errors[2]


def test_state_reports_progress(client: Client) -> None:
    assert client.json("state") == {"jobs": [], "over": 0}
    client.json("jobs", {"prompt": "it waits"})
    when(lambda: client.queue.jobs()[0].progress)
    (job,) = client.json("state")["jobs"]
    assert job["progress"] == {
        "phase": "distilling at 64 px", "done": "1", "total": "4", "details": LINE.partition("4, ")[2],
    }  # fmt: skip
    assert job["picture"] == "" and not job["report"] and "command" not in job
    finished_run(client.root / job["name"])
    image = client.json("state")["jobs"][0]["picture"]
    assert client.ask(image).read().startswith(b"\x89PNG")
    (client.root / "it-waits-0.go").touch()
    client.until(["finished"])
    state = client.json("state")
    assert state["over"] == 1 and state["jobs"][0]["report"]


def test_prompt_words_are_checked(client: Client) -> None:
    found = client.json("words?prompt=a%20red%20corgi")
    assert [(word["word"], word["known"]) for word in found["words"]] == [("a", True), ("red", True), ("corgi", False)]
    assert found["words"][2]["near"] == ["dog"] and {"dog", "car", "chair"} < set(found["nouns"])
    found = client.json("words?prompt=a%20red%20hel")
    assert found["typed"] == "hel" and found["nouns"] == ["helicopter"]
    found = client.json("words?prompt=a%20dog%20and%20a%20car")
    assert found["nouns"] == [] and "dog" in found["notes"][0] and "car" in found["notes"][0]


def test_earlier_runs_are_listed(client: Client) -> None:
    finished_run(client.root / "deep" / "one", prompt="a <b>cat</b>")
    cards = client.ask("cards").read().decode()
    assert cards.count('class="card"') == 1 and "./deep/one/report.html" in cards
    assert "a &lt;b&gt;cat&lt;/b&gt;" in cards and client.ask("deep/one/asset").status == 200


@pytest.mark.parametrize(
    "path", ["../source/mesh.glb", "%2e%2e/source/mesh.glb", "link/mesh.glb", "no.png", "a\0b", "asset", "x" * 5000]
)
def test_files_outside_the_runs_are_not_found(client: Client, path: str) -> None:
    (client.root / "link").symlink_to(client.root.parent / "source")
    assert client.ask(path.replace("\0", "%00")).status == 404


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"x" * 70_000, {"prompt": 3}, {"prompt": "  "}])
def test_invalid_requests_are_refused(client: Client, body: object) -> None:
    answer = client.ask("jobs", body)
    assert answer.status == 400 and json.loads(answer.read())["error"] and client.states() == []


def test_invalid_job_is_refused_before_it_waits(tmp_path: Path) -> None:
    config = StudioConfig(task="studio", config=str(tiny_generate(tmp_path)))
    job = make_job(config, tmp_path, "a dog", 3)
    assert job.state == "waiting" and job.command[-3:] == ["prompt=a dog", "seed=3", f"out={tmp_path / job.name}"]
    with refused(None, "seed", -1):
        make_job(config, tmp_path, "a dog", -1)
    with refused(None, "prompt"):
        make_job(config, tmp_path, " ", 0)


def test_invalid_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for override, parts in (
        (f"out={tmp_path / 'file'}", ("out: ", str(tmp_path / "file"))),
        ("config=gallery", ("config: ", "gallery")),
        ("overrides=[prompt=a]", ("overrides: ", "prompt")),
        ("port=70000", ("port", "70000")),
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
        client.json("jobs", {"prompt": "a red dog"})
        when(lambda: client.states()[0] in ("finished", "failed"), seconds=600)
        (job,) = client.queue.jobs()
        assert job.state == "finished", job.error
        assert job.progress["done"] == job.progress["total"]
        assert (client.root / job.name / "report.html").exists() and "a red dog" in client.ask("cards").read().decode()
        client.json("jobs", {"prompt": "a red dog"})
        assert client.states() == ["finished"] and client.queue.over == 1
