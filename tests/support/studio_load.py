"""Many clients of a studio at once: half of them read the event stream, half submit, read, cancel and remove jobs."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.support.studio import Client

EXPECTED = {"POST": (201, 202), "GET": (200,), "DELETE": (204, 409), "PUT": (201,)}
"""Status codes of answers by method. 409: the job runs."""


@dataclass
class Load:
    """Result: seconds of each request; answers with another status code than expected; events read by each stream."""

    seconds: list[float] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    events: list[int] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def load(url: str, run: str, clients: int = 200, rounds: int = 1) -> Load:
    """Send requests to the studio at `url` from `clients` threads, and return what they measure.

    `run` is the name of a finished run, whose file asset/square.glb is read. Every client that is not on the event
    stream makes `rounds` times seven requests, each on a connection of its own.
    """
    client: Any = Client(url, None, None, None)
    result, reading, done = Load(), threading.Barrier(clients), threading.Event()

    def ask(method: str, path: str, body: Any = None) -> bytes:
        start = time.perf_counter()
        answer = client.ask(f"api/v1/{path}", body, method)
        data = answer.read()
        result.seconds.append(time.perf_counter() - start)
        if answer.status not in EXPECTED[method]:
            result.unexpected.append(f"{method} {path}: {answer.status} {data[:200]!r}")
        return data

    def stream() -> None:
        answer = client.ask("api/v1/events")
        reading.wait()
        count = 0
        while True:
            line = answer.readline()
            assert line, "the stream has ended"
            count += line.startswith(b"data:")
            if done.is_set():  # each job that ends is an event, also the last one
                break
        result.events.append(count)
        answer.close()

    def work(number: int) -> None:
        reading.wait()
        for repeat in range(rounds):
            job = json.loads(ask("POST", "jobs", {"prompt": f"dog {number} {repeat}", "seed": number}))["number"]
            ask("GET", f"jobs/{job}")
            ask("GET", f"runs/{run}/files/asset/square.glb")
            ask("PUT", f"files/{number}.png", b"image %d" % number)
            ask("POST", f"jobs/{job}/cancel")
            ask("GET", "jobs")
            ask("DELETE", f"jobs/{job}")

    with ThreadPoolExecutor(clients) as pool:
        streams = [pool.submit(stream) for _ in range(clients // 2)]
        for worker in [pool.submit(work, number) for number in range(clients - clients // 2)]:
            worker.result()
        done.set()
        ask("POST", "jobs", {"prompt": "the last dog", "seed": 1})
        for one in streams:
            one.result()
    return result
