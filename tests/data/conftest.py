"""Fixtures shared by the reader tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from threedgen.toybox.data import make_rooms
from threedgen.toybox.options import MakeToyRoomsConfig


def toy_rooms_config(out: Path, **more: object) -> MakeToyRoomsConfig:
    """Return a config of one small entry per kind and split."""
    counts = {"train_panoramas": 1, "test_panoramas": 1, "train_walks": 1, "test_walks": 1}
    sizes = {"height": 36, "width": 48, "frames": 70}
    values = {"task": "make-toy-rooms", "out": str(out), "threads": 1, **counts, **sizes, **more}
    return MakeToyRoomsConfig.model_validate(values)


@pytest.fixture(scope="session")
def toy_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy rooms in the Matterport3D and ScanNet layouts, read-only."""
    out = tmp_path_factory.mktemp("rooms")
    assert make_rooms.run(toy_rooms_config(out), quiet=True) == 0
    return out


def damage(path: Path, content: bytes | Callable[[Path], object] | None) -> None:
    """Overwrite a file with bytes, delete it (None), or change it by a function."""
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
