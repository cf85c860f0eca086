"""Results of single assets, and the metrics of a method over all its assets."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes, read_json
from threedgen.data.coloured_mesh import ColouredMesh, EmptyMesh, fit_to_ball, read_mesh
from threedgen.evaluation.metrics.figures import Json, median, share
from threedgen.evaluation.options import FRONT_THRESHOLD
from threedgen.evaluation.report import rounded, thumbnails
from threedgen.geometry.images import write_png
from threedgen.geometry.mesh_file import MAX_BYTES
from threedgen.run.disk import write_json
from threedgen.train.checkpoint_file import LAST

from .meter import Meter, RunField
from .options import MeterConfig
from .rates import ErrorRates

State = Literal["seen", "empty", "unreadable", "failed", "missing"]
STATES: tuple[State, ...] = ("seen", "empty", "unreadable", "failed", "missing")


@dataclass(frozen=True)
class Result:
    """Result of one asset, the object that a method made of a prompt.

    Attributes:
        folder: folder of the run, or name of the kept views.
        state: "seen" (evaluated), "empty" (nothing to render), "unreadable", "failed" (the run of the object failed) or
            "missing" (not made yet). Only an asset with the state "seen" has values from ``fronts`` to ``likeness``.
        fronts, doubt, shown, right: see `fronts.RingResult`.
        sides: probabilities (V, 4) of front, left, back and right in each view.
        likeness: mean similarity of the views to each prompt of the benchmark.
        seconds, memory_mib: duration and peak memory of the run that made the object.
    """

    method: str
    prompt: str
    seed: int | None
    folder: str
    state: State
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
        """Return whether the asset is more similar to its own prompt than to all other ``prompts`` of the benchmark."""
        return self.likeness is not None and prompts[int(np.argmax(self.likeness))] == self.prompt

    def plain(self) -> Json:
        """Return the result as a JSON object with rounded floats."""
        return rounded(asdict(self)) | {"janus": self.janus}


class Reader:
    """Reader of assets: classifies the views of an asset and stores them in ``folder``/NAME.json and NAME.png.

    Args:
        prompts: all prompts of the benchmark, which each asset is compared with.
        rates: error rates of the meter, whose threshold is used; None: the configured threshold is used.
        free: whether the orientation of the assets is unknown.
    """

    def __init__(
        self, config: MeterConfig, prompts: Sequence[str], folder: Path, rates: ErrorRates | None, free: bool = False
    ) -> None:
        self.config, self.prompts, self.folder, self.free = config, list(prompts), folder, free
        self.threshold = rates.threshold if rates is not None else config.threshold or FRONT_THRESHOLD
        options = config.model_dump(mode="json", exclude={"threshold"})
        self._options = json.dumps([options, self.prompts], sort_keys=True)

    @cached_property
    def meter(self) -> Meter:
        return Meter(self.config)

    def read(self, path: Path, name: str, prompt: str, up: Literal["y", "z"] = "y", fit: bool = False) -> Json:
        """Classify the views of an asset, or read them from the folder of an earlier run.

        Args:
            path: mesh file, or folder of the checkpoints of a neural field.
            name: name of the stored files.
            up: up axis of the mesh file.
            fit: whether to centre and scale the mesh, for files of unknown size.

        Returns:
            ``state`` and other keyword arguments of `Result`.
        """
        if not path.exists():
            return {"state": "empty", "reason": f"there is no {path.name}"}
        is_run, kept = path.is_dir(), self.folder / f"{name}.json"
        try:
            content = read_bytes(path / LAST if is_run else path, MAX_BYTES)
        except OSError as error:
            return {"state": "unreadable", "reason": f"{path} cannot be read ({error.strerror})"}
        parts = (content, self._options.encode(), prompt.encode(), f"{up}{fit}".encode())
        key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        found = read_json(kept)
        if found.get("key") != key or not kept.with_suffix(".png").is_file():
            try:
                mesh = RunField(path.parent) if is_run else read_mesh(path, up)
                mesh = fit_to_ball(mesh) if isinstance(mesh, ColouredMesh) and fit else mesh
                reading = self.meter.classify(mesh, prompt)
            except ConfigError as error:
                return {"state": "empty" if isinstance(error, EmptyMesh) else "unreadable", "reason": str(error)}
            likeness = self.meter.likeness(reading.views, self.prompts) if self.prompts else None
            found = {"key": key, "sides": reading.sides.tolist(), "likeness": likeness}
            write_png(kept.with_suffix(".png"), np.concatenate(list(thumbnails(reading.views)), axis=1))
            write_json(kept, found)
        ring = self.meter.evaluate(np.array(found["sides"]), self.threshold, self.free)
        return {"state": "seen", "sides": found["sides"], "likeness": found["likeness"]} | vars(ring)


def method_row(
    method: str, results: Sequence[Result], prompts: Sequence[str], rates: ErrorRates | None, refused: str | None
) -> Json:
    """Compute the metrics of a method over its assets. Shares include only assets with the state "seen".

    Args:
        results: results of the assets of the method.
        prompts: all prompts of the benchmark.
        refused: reason why the method cannot run, or None.

    Returns:
        raw: Janus rate, the share of assets with two or more fronts; corrected: Janus rate corrected for the errors of
        the meter; no_front: share of assets without a front; right: share of views that show the side that their camera
        sees; match: R-Precision, the share of assets that are most similar to their own prompt; recognised: Janus rate
        of these assets; states: number of assets by state; seconds: median duration; memory_mib: maximum peak memory.
    """
    seen = [result for result in results if result.state == "seen"]
    scored = [result for result in seen if result.likeness is not None]
    raw = share([result.janus for result in seen])
    low, high = (rates and rates.interval(raw)) or (None, None)
    states = Counter[str](result.state for result in results)
    return {
        "method": method,
        "raw": raw.plain(),
        "no_front": share([result.fronts == 0 for result in seen]).plain(),
        "corrected": {"share": rates.corrected(raw) if rates else None, "low": low, "high": high},
        "right": share([view for result in seen for view in result.right]).plain(),
        "match": share([result.recognised(prompts) for result in scored]).plain(),
        "recognised": share([result.janus for result in scored if result.recognised(prompts)]).plain(),
        "states": {state: states[state] for state in STATES if states[state]},
        "seconds": median([result.seconds for result in results]),
        "memory_mib": max((r.memory_mib for r in results if r.memory_mib is not None), default=None),
        "reason": refused or next((result.reason for result in results if result.reason), ""),
    }
