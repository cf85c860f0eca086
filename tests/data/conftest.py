"""What tests of several readers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from threedgen.data.toybox import make_rooms
from threedgen.data.toybox.options import MakeToyRoomsConfig


def toy_rooms_config(out: Path, **more: object) -> MakeToyRoomsConfig:
    """Few and small."""
    counts = {"train_panoramas": 1, "test_panoramas": 1, "train_walks": 1, "test_walks": 1}
    sizes = {"skybox_size": 96, "height": 36, "width": 48, "frames": 70}
    values = {"task": "make-toy-rooms", "out": str(out), "threads": 1, **counts, **sizes, **more}
    return MakeToyRoomsConfig.model_validate(values)


@pytest.fixture(scope="session")
def toy_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy rooms in both layouts, to be read only."""
    out = tmp_path_factory.mktemp("rooms")
    assert make_rooms.run(toy_rooms_config(out), quiet=True) == 0
    return out
