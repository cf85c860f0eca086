"""From a mesh to a line of the table, and from lines to the figures of a method."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes, read_json
from threedgen.data.coloured_mesh import ColouredMesh, EmptyMesh, fit_to_ball, read_mesh
from threedgen.evaluation.metrics.figures import median, share
from threedgen.evaluation.tables import rounded
from threedgen.evaluation.toybox.options import FRONT_THRESHOLD
from threedgen.geometry.images import write_png
from threedgen.geometry.mesh_file import MAX_BYTES
from threedgen.run.disk import write_json
from threedgen.train.checkpoint_file import LAST

from .meter import Meter, RunField
from .options import MeterConfig
from .rates import ErrorRates

STATES = ("seen", "empty", "unreadable", "failed", "missing")


@dataclass(frozen=True)
class Result:
    """One asset. ``state``: seen, empty (nothing to look at), unreadable, failed (its run), missing (not made yet);
    ``fronts`` and what follows only of those that were seen. ``shown``, ``right``: of each view, whether it counts as a
    front and whether it shows its side. ``likeness``: to each prompt of the benchmark."""

    method: str
    prompt: str
    seed: int | None
    folder: str
    state: Literal["seen", "empty", "unreadable", "failed", "missing"]
    reason: str = ""
    fronts: int | None = None
    doubt: float | None = None
    shown: tuple[bool, ...] = ()
    right: tuple[bool, ...] = ()
    sides: Sequence[Sequence[float]] = ()
    likeness: Sequence[float] | None = None
    seconds: float | None = None
    memory_mib: float | None = None

    @property
    def janus(self) -> bool:
        return self.fronts is not None and self.fronts > 1

    def recognised(self, prompts: Sequence[str]) -> bool:
        """Tells whether its own prompt fits it best of all ``prompts``."""
        return self.likeness is not None and prompts[int(np.argmax(self.likeness))] == self.prompt

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return rounded(asdict(self)) | {"janus": self.janus}


class Reader:
    """Classifies meshes and keeps what it saw in ``folder``/NAME.json and NAME.png: nothing is classified twice."""

    def __init__(
        self, config: MeterConfig, prompts: Sequence[str], folder: Path, rates: ErrorRates | None, free: bool = False
    ) -> None:
        self.config, self.prompts, self.folder, self.free = config, list(prompts), folder, free
        self.threshold = rates.threshold if rates is not None else config.threshold or FRONT_THRESHOLD
        seen_by = config.model_dump(mode="json", exclude={"threshold"})
        self._settings = json.dumps([seen_by, self.prompts], sort_keys=True)

    @cached_property
    def meter(self) -> Meter:
        return Meter(self.config)

    def read(
        self, path: Path, name: str, prompt: str, up: Literal["y", "z"] = "y", fit: bool = False
    ) -> dict[str, Any]:
        """Looks at the mesh at ``path``, or at the field if this is a run's folder of checkpoints; gives state and
        figures, as keyword arguments of Result. ``fit``: move a mesh to the middle and scale it, for files of unknown
        measures."""
        if not path.exists():
            return {"state": "empty", "reason": f"there is no {path.name}"}
        run, kept = path.is_dir(), self.folder / f"{name}.json"
        try:
            content = read_bytes(path / LAST if run else path, MAX_BYTES)
        except OSError as error:
            return {"state": "unreadable", "reason": f"{path} cannot be read ({error.strerror})"}
        parts = (content, self._settings.encode(), prompt.encode(), f"{up}{fit}".encode())
        key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        found = read_json(kept)
        if found.get("key") != key or not kept.with_suffix(".png").is_file():
            try:
                mesh = RunField(path.parent) if run else read_mesh(path, up)
                reading = self.meter.classify(
                    fit_to_ball(mesh) if isinstance(mesh, ColouredMesh) and fit else mesh, prompt
                )
            except ConfigError as error:
                return {"state": "empty" if isinstance(error, EmptyMesh) else "unreadable", "reason": str(error)}
            likeness = self.meter.likeness(reading.views, self.prompts) if self.prompts else None
            found = {"key": key, "sides": reading.sides.tolist(), "likeness": likeness}
            write_png(kept.with_suffix(".png"), np.concatenate(list(reading.small().views), axis=1))
            write_json(kept, found)
        ring = self.meter.judge(np.array(found["sides"]), self.threshold, self.free)
        return {"state": "seen", "sides": found["sides"], "likeness": found["likeness"]} | vars(ring)


Row = dict[str, Any]
"""A method's figures, as in report.json; see ``rows``."""


def rows(
    methods: Sequence[str],
    results: Sequence[Result],
    prompts: Sequence[str],
    rates: ErrorRates | None,
    refused: Mapping[str, str],
) -> list[Row]:
    """Computes a row for each method, those that cannot run included: ``refused`` says why.

    raw: assets with two fronts or more, of those that were seen; corrected: their share without the meter's errors;
    no_front: of the same, those that show none; right: views that show their side; match: assets whose own prompt fits
    them best of all prompts (R-Precision); recognised: assets with two fronts or more, of those; seconds: median;
    memory: the most.
    """
    found = []
    for method in methods:
        mine = [result for result in results if result.method == method]
        seen = [result for result in mine if result.state == "seen"]
        named = [result for result in seen if result.likeness is not None]
        raw = share([result.janus for result in seen])
        low, high = (rates and rates.interval(raw)) or (None, None)
        states = Counter[str](result.state for result in mine)
        row = {
            "method": method,
            "raw": raw.plain(),
            "no_front": share([result.fronts == 0 for result in seen]).plain(),
            "corrected": {"share": rates.corrected(raw) if rates else None, "low": low, "high": high},
            "right": share([view for result in seen for view in result.right]).plain(),
            "match": share([result.recognised(prompts) for result in named]).plain(),
            "recognised": share([result.janus for result in named if result.recognised(prompts)]).plain(),
            "states": {state: states[state] for state in STATES if states[state]},
            "seconds": median([result.seconds for result in mine]),
            "memory_mib": max((r.memory_mib for r in mine if r.memory_mib is not None), default=None),
            "reason": refused.get(method) or next((result.reason for result in mine if result.reason), ""),
        }
        found.append(row)
    return found
