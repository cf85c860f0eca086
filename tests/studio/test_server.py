"""The studio without a browser: who gets in, the queue, the words, what it tells, and the files of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.example_run import Page, asset_glb
from tests.support.studio import FAILURE, LINE, Client, finished_run, studio
from tests.support.task_server import tiny_generate
from tests.support.waiting import when
from threedgen import cli
from threedgen.config import ConfigError, load
from threedgen.studio.jobs import ordered
from threedgen.studio.options import StudioConfig
from threedgen.viewer.local import REFUSAL


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with studio(tmp_path, monkeypatch) as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/the-kez/", {}),
        ("/the-key", {"Host": "example.com"}),
        ("/the-key/", {"Host": "evil.example:8090"}),
        ("/the-key/", {"Origin": "http://evil.example"}),
        ("/the-key/", {"Origin": "null"}),
        ("/the-key/words?prompt=a", {"Origin": "https://127.0.0.1"}),
    ],
)
def test_nobody_else_gets_in(client: Client, path: str, headers: dict[str, str]) -> None:
    for body in (None, {"prompt": "a dog"}):
        answer = client.ask(path, body, **headers)
        assert answer.status == 403 and answer.read().decode() == REFUSAL
    assert client.states() == []


def test_a_tunnel_may_have_another_port(client: Client) -> None:
    assert client.ask("", Host="localhost:9000", Origin="http://localhost:9000").status == 200


def test_the_page_asks_nobody_else_and_stands_in_no_foreign_page(client: Client) -> None:
    answer = client.ask("")
    page = Page(answer.read().decode())
    assert all(not address.startswith(("http", "//")) for address in page.addresses())
    assert answer.getheader("Content-Security-Policy") == "frame-ancestors 'self'"
    policy = next(given["content"] for _, given in page.attributes if "http-equiv" in given)
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert answer.getheader("Cache-Control") == "no-store" and answer.getheader("X-Content-Type-Options") == "nosniff"


def test_a_prompt_becomes_a_run_and_a_download(client: Client) -> None:
    assert client.json("jobs", {"prompt": "  a blue   dog ", "seed": 3}) == {"number": 1}
    client.until(["finished"])
    (job,) = client.queue.jobs()
    assert (job.prompt, job.seed, job.progress["phase"]) == ("a blue dog", 3, "distilling at 64 px")
    answer = client.ask(f"{job.name}/asset/square.glb")
    assert answer.read() == asset_glb((0, 0, 1)) and answer.getheader("Content-Type") == "model/gltf-binary"
    page = client.ask(f"{job.name}/asset")
    assert Page(page.read().decode()).decoded("mesh") == asset_glb((0, 0, 1))
    assert page.getheader("Content-Security-Policy") == "sandbox allow-scripts allow-downloads"


def test_one_runs_others_wait_and_can_be_removed(client: Client) -> None:
    for prompt in ("it waits", "a cat", "a dog"):
        assert "number" in client.json("jobs", {"prompt": prompt})
    client.until(["running", "waiting", "waiting"])
    assert "is being made already" in client.json("jobs", {"prompt": "a cat"})["error"]
    client.json("drop", {"number": 2})
    client.until(["running", "waiting"])
    (client.root / "it-waits-0.go").touch()
    client.until(["finished", "finished"])
    assert client.queue.over == 2
    client.json("drop", {"number": 1})
    client.until(["finished"])


def test_a_running_one_is_stopped_and_goes_on_when_asked_again(client: Client) -> None:
    client.json("jobs", {"prompt": "it waits"})
    when(lambda: client.queue.jobs()[0].progress)
    client.json("drop", {"number": 1})
    client.until(["interrupted"])
    (client.root / "it-waits-0.go").touch()
    client.json("jobs", {"prompt": "it waits"})
    client.until(["finished"])


def test_stopped_twice_it_ends_at_once(client: Client) -> None:
    client.json("jobs", {"prompt": "stubborn, it waits"})
    when(lambda: client.queue.jobs()[0].progress)
    client.json("drop", {"number": 1})
    when(lambda: client.queue.jobs()[0].progress["phase"] == "one more")
    assert client.states() == ["stopping"]
    client.json("drop", {"number": 1})
    client.until(["interrupted"])


def test_errors_of_a_job_are_its_sentence_and_the_next_is_made(client: Client) -> None:
    for prompt in ("it fails", "it dies", "nul\0"):
        client.json("jobs", {"prompt": prompt})
    client.json("jobs", {"prompt": "a cat"})
    client.until(["failed", "failed", "failed", "finished"])
    errors = [job.error for job in client.queue.jobs()]
    assert errors[0] == FAILURE and errors[1] == "the run was ended by signal 9" and "null byte" in errors[2]


def test_what_happens_is_told_as_it_happens(client: Client) -> None:
    events = client.ask("events")
    assert events.getheader("Content-Type") == "text/event-stream"

    def told() -> dict:
        while not (line := events.fp.readline().strip()):
            pass
        return json.loads(line.removeprefix(b"data: "))

    assert told() == {"jobs": [], "over": 0}
    client.json("jobs", {"prompt": "it waits"})
    state = told()
    while not state["jobs"][0]["progress"]:
        state = told()
    (job,) = state["jobs"]
    assert job["progress"] == {
        "phase": "distilling at 64 px", "done": "1", "total": "4", "details": LINE.partition("4, ")[2],
    }  # fmt: skip
    assert job["picture"] == "" and not job["report"] and "command" not in job
    finished_run(client.root / job["name"])
    while not (picture := told()["jobs"][0]["picture"]):
        pass
    assert client.ask(picture).read().startswith(b"\x89PNG")
    (client.root / "it-waits-0.go").touch()
    while (state := told())["over"] == 0 or state["jobs"][0]["state"] != "finished":
        pass
    assert state["jobs"][0]["report"]


def test_words_are_looked_at_while_they_are_typed(client: Client) -> None:
    found = client.json("words?prompt=a%20red%20corgi")
    assert [(word["word"], word["known"]) for word in found["words"]] == [("a", True), ("red", True), ("corgi", False)]
    assert found["words"][2]["near"] == ["dog"] and {"dog", "car", "chair"} < set(found["nouns"])
    found = client.json("words?prompt=a%20red%20hel")
    assert found["typed"] == "hel" and found["nouns"] == ["helicopter"]
    found = client.json("words?prompt=a%20dog%20and%20a%20car")
    assert found["nouns"] == [] and found["notes"][0].startswith("the prompt names dog and car")


def test_earlier_runs_are_shown(client: Client) -> None:
    finished_run(client.root / "deep" / "one", prompt="a <b>cat</b>")
    cards = client.ask("cards").read().decode()
    assert cards.count('class="card"') == 1 and "./deep/one/report.html" in cards
    assert "a &lt;b&gt;cat&lt;/b&gt;" in cards and client.ask("deep/one/asset").status == 200


@pytest.mark.parametrize(
    "path", ["../source/mesh.glb", "%2e%2e/source/mesh.glb", "link/mesh.glb", "no.png", "a\0b", "asset", "x" * 5000]
)
def test_files_elsewhere_are_not_there(client: Client, path: str) -> None:
    (client.root / "link").symlink_to(client.root.parent / "source")
    assert client.ask(path.replace("\0", "%00")).status == 404


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"x" * 70_000, {"prompt": 3}, {"prompt": "  "}])
def test_mistakes_are_a_sentence(client: Client, body: object) -> None:
    answer = client.ask("jobs", body)
    assert answer.status == 400 and json.loads(answer.read())["error"] and client.states() == []


def test_a_prompt_that_nothing_can_be_made_of_is_refused_before_it_waits(tmp_path: Path) -> None:
    config = StudioConfig(task="studio", config=str(tiny_generate(tmp_path)))
    job = ordered(config, tmp_path, "a dog", 3)
    assert job.state == "waiting" and job.command[-3:] == ["prompt=a dog", "seed=3", f"out={tmp_path / job.name}"]
    with pytest.raises(ConfigError, match="seed"):
        ordered(config, tmp_path, "a dog", -1)
    with pytest.raises(ConfigError, match="prompt: is empty"):
        ordered(config, tmp_path, " ", 0)


def test_mistakes_in_the_config_are_said_before_the_page_opens(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for word, said in (
        (f"out={tmp_path / 'file'}", "out: should be a folder"),
        ("config=gallery", "config: gallery: should be the config of a task that makes an object of a prompt"),
        ("overrides=[prompt=a]", "overrides: prompt is set by the studio itself"),
        ("port=70000", "port"),
    ):
        assert cli.main(["--config", "studio", word]) == 2 and said in capsys.readouterr().err
    assert load("studio").config == "quick-toybox"


@pytest.mark.slow
def test_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a second, by a tiny prior; asked for again it is there already."""
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
