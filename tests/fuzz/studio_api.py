"""Hook of schemathesis: half of the valid requests name a job or run that exists, or order what can be made."""

import zlib
from typing import Any

import schemathesis

RUNS, FILES = ("one", "deep/two"), ("report.html", "asset/square.glb")


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    values = repr((case.path_parameters, case.body)).encode("utf-8", "surrogatepass")
    number, skip = divmod(zlib.crc32(values), 2)  # follows from the values: runs with the same seed are the same
    if skip or case.meta.generation.mode != "positive":
        return case
    file = f"{number}.png" if "/files/{name}" in context.operation.path else RUNS[number % 2]
    known = {"number": number % 12 + 1, "name": file, "file": FILES[number // 2 % 2]}
    for key in case.path_parameters or {}:
        case.path_parameters[key] = known[key]
    if isinstance(case.body, dict) and context.operation.path.endswith("/jobs"):
        case.body = {"prompt": f"a {('red', 'blue')[number % 2]} dog", "seed": case.body.get("seed", 0)}
    return case
