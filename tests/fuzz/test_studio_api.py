"""The studio's API with arbitrary requests: each gets an answer that openapi.json describes, and never a 5xx."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.test_texts import TREES
from tests.support.studio import TOKEN, finished_run, studio
from threedgen.studio import api, state
from threedgen.studio.jobs import Job, export_job, make_job

EXAMPLES, RUNS = round(20 * float(os.environ.get("FUZZ_TIMES", 1))), ("one", "deep/two")
TEXTS, NUMBERS = st.text(max_size=20), st.integers(1, 4)
NAMES, FILES = st.sampled_from(RUNS) | TEXTS, st.sampled_from(["asset/square.glb", "chair.glb"]) | TEXTS
VALID = st.sampled_from([{"prompt": "a red dog"}, {"height": 2.0}, {}, b"data"])
KEYS = st.sampled_from(["prompt", "seed", "edit", "image", "mesh", "export", "height"])


@pytest.mark.slow
def test_any_request_gets_a_documented_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def instant(job: Job) -> Job:
        job.command = [sys.executable, "-S", "-c", ""]
        return job

    with studio(tmp_path, monkeypatch) as client:
        for prompt in ("it fails", "a cat", "it waits", "a dog"):
            client.submit(prompt)
        monkeypatch.setattr(state, "make_job", lambda *args: instant(make_job(*args)))
        monkeypatch.setattr(api, "export_job", lambda *args: instant(export_job(*args)))
        described = client.api("openapi.json")
        del described["paths"]["/api/v1/events"]  # never ends
        operations = [(path, *item) for path, methods in described["paths"].items() for item in methods.items()]

        @settings(max_examples=EXAMPLES)
        @given(NUMBERS | TEXTS, NAMES, FILES, VALID | st.dictionaries(KEYS, NAMES | TREES) | TREES | st.binary())
        def check(operation: tuple[str, str, Any], number: Any, name: str, file: str, body: Any) -> None:
            path, method, description = operation
            for run in RUNS:
                if not (client.root / run).exists():
                    finished_run(client.root / run)
            where = path.format(number=quote(str(number)), name=quote(name), file=quote(file))
            body = body if "requestBody" in description else None
            answer = client.ask(f"/{TOKEN}{where}", body, method.upper())
            data, kind = answer.read(), answer.getheader("Content-Type", "").partition(";")[0]
            answers = description["responses"]
            assert answer.status < 500 and str(answer.status) in answers, (where, answer.status, data)
            kinds = answers[str(answer.status)].get("content", {})
            if kind == "application/json" and kind in kinds:
                schema = kinds[kind]["schema"] | {"components": described["components"]}
                jsonschema.validate(json.loads(data), schema)
            else:
                assert not data or kind in kinds or "*/*" in kinds, (where, kind)

        for operation in operations:
            check(operation)
