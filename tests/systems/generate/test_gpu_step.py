"""Training steps of the configs for a GPU on a simulated one (tests/support/card.py), with small networks.

A step fails if it mixes the GPU with CPU tensors. It may wait for the GPU only at the places in `SYNCS`.
"""

import json
from typing import Any

import pytest

from tests.support.fork_server import Server, log
from tests.support.marks import unix
from tests.support.small_run import small_field
from tests.support.task_server import prior_folder
from tests.support.tiny_methods import folders

pytestmark = unix
SYNCS = {
    "march: number of samples",  # memory for them is allocated
    "select: nonzero",  # only the visible ones are kept
    "on_before_optimizer_step: copy to the host",  # loss and gradients, for the guard against NaN
    "ends: copy to the host",  # rays of each chunk, if the render is chunked
}
SMALL = ["threads=1", "prior.dtype=bf16", "march.samples=24", "occupancy.resolution=8", "trainer.accelerator=cpu"]
WHOLE = "march.chunk=null"
MVDREAM = [
    *SMALL,
    *small_field("field", "encoding.per_level_scale=2"),
    "size={0: 8, 5: 16}",
    "scenes_per_step={0: 2, 5: 1}",
]
SHADED = ["material.ambient_only_steps=5", "material.diffuse_probability=1", "loss.orientation={0: 10, 5: 1000}"]
CLASSIC = [*SMALL, WHOLE, *small_field("field", "encoding.per_level_scale=2"), "size=12", "field.levels={0: 1, 5: 3}"]
VSD = [*SMALL, WHOLE, *small_field("stages.field.field", "encoding.per_level_scale=2"), "stages.field.size=12"]
CASES: dict[str, tuple[str, str, list[str], list[int], int]] = {
    "mvdream-sd21, 64 px": ("mvdream-sd21", "toybox", [*MVDREAM, WHOLE], [0, 1, 2], 3),
    "mvdream-sd21, 256 px": ("mvdream-sd21", "toybox", [*MVDREAM, WHOLE], [0, 6], 3),
    "mvdream-sd21, chunks": ("mvdream-sd21", "toybox", [*MVDREAM, "march.chunk=500"], [0, 6], 4),
    "mvdream-sd21-shading": ("mvdream-sd21-shading", "toybox", [*MVDREAM, WHOLE, *SHADED], [0, 6], 3),
    "sds-sd": ("sds-sd", "sd", [*CLASSIC, *SHADED[:2]], [0, 6], 3),
    "dreamfusion-if": ("dreamfusion-if", "if", [*CLASSIC, *SHADED[:2]], [0, 6], 3),
    "prolificdreamer-sd": ("prolificdreamer-sd", "sd", [*VSD, "camera.distance_range=[1.5,1.6]"], [0, 6], 3),
}
"""Name -> config, weights, words, steps of which the last is counted, and the number of synchronisations."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of all cases, from one process."""
    cases, folder = {}, tmp_path_factory.mktemp("card")
    for name, (config, weights, words, numbers, _) in CASES.items():
        place = prior_folder() if weights == "toybox" else folders() / weights
        stage = "field" if config == "prolificdreamer-sd" else None
        cases[name] = {"config": config, "words": [*words, f"prior.weights={place}"], "steps": numbers, "stage": stage}
    assert Server("tests.support.card:main").run(folder, cases=cases) == 0, log(folder)[-3000:]
    return json.loads((folder / "steps.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_step_waits_only_where_it_must(name: str, steps: dict[str, dict[str, Any]]) -> None:
    syncs, launches = steps[name]["syncs"], steps[name]["launches"]
    print(f"{name}: {sum(syncs.values())} synchronisations, {sum(launches.values())} launches")
    assert {place.split(" ", 1)[1] for place in syncs} <= SYNCS and sum(syncs.values()) <= CASES[name][4], syncs
    assert launches["grid encode"] and launches["composite backward"] and launches["march place"]
    assert launches.get("graph", 0) == (len(CASES[name][3]) > 2)  # the UNet, after two steps
