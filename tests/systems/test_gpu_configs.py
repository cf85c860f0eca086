from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.card_cases import COMMANDS, STEPS, results

ROOT = Path(__file__).parents[2]
SYNCS = {
    "march: number of samples",  # memory for them is allocated
    "select: nonzero",  # only the visible ones are kept
    "update: nonzero",  # occupied cells, for an update of the occupancy grid (every 16th step)
    "mean: _local_scalar_dense",  # of the occupancy grid, after an update
    "on_before_optimizer_step: copy to the host",  # loss and gradients, for the guard against NaN
    "_ends: copy to the host",  # rays of each chunk and of each group that is marched, if the render is chunked
    "_roughness: nonzero",  # rays that hit the object
    "inversion_timesteps: _local_scalar_dense",  # number of inversion steps
    # DMTet: sizes of the mesh and of its outline, and the mesh itself for the rasteriser on the CPU
    *(f"marching_tetrahedra: {operator}" for operator in ("nonzero", "_unique2", "index")),
    *("<genexpr>: copy to the host", "surface_points: nonzero", "_outline: _unique2", "_outline: nonzero"),
    *(f"_crossings: {operator}" for operator in ("nonzero", "repeat_interleave", "_unique2", "index")),
}

GRAPHED = {"mvdream-sd21", "luciddreamer-sd21", "csd-sd21", "csd-sd21, coarse", "sdi-sd21", "preview-mvdream-sd21"}
"""Cases whose UNet is replayed as a CUDA graph, after two steps of one shape."""

LAUNCHES = {
    "mvdream-sd21": 397, "mvdream-sd21, 256 px": 623, "mvdream-sd21, chunks": 893, "mvdream-sd21-shading": 757
}  # fmt: skip
"""Kernel launches of a step; 5 % more are allowed."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return results(tmp_path_factory.mktemp("card"))


def test_every_config_for_a_gpu_has_a_case() -> None:
    known = {name.partition(",")[0] for name in (*STEPS, *COMMANDS)}
    needs = {path.stem: yaml.safe_load(path.read_text()).get("needs", "") for path in (ROOT / "configs").glob("*.yaml")}
    assert {name for name, text in needs.items() if "GPU" in text and "core" not in text} <= known


@pytest.mark.parametrize("name", [*STEPS, *COMMANDS])
def test_step_waits_only_where_it_must(name: str, steps: dict[str, dict[str, Any]]) -> None:
    syncs, launches, problem = (steps[name][key] for key in ("syncs", "launches", "problem"))
    assert not problem, problem
    print(f"{name}: {sum(syncs.values())} synchronisations, {sum(launches.values())} launches")
    assert {place.split(" ", 1)[1] for place in syncs} <= SYNCS, syncs
    assert sum(syncs.values()) <= (STEPS | COMMANDS)[name][-1], syncs
    assert sum(launches.values()) > (10 if name in GRAPHED else 50)
    assert sum(launches.values()) <= 1.05 * LAUNCHES.get(name, float("inf"))
    if name.startswith("mvdream-sd21"):
        assert launches["grid encode"] and launches["composite backward"] and launches["march place"]
    assert (launches.get("graph", 0) > 0) == (name in GRAPHED)
