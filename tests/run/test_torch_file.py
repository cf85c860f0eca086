"""Files of tensors from strangers: what takes more memory than the file has is refused before it is taken."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from threedgen.config import ConfigError
from threedgen.run.torch_file import compare, leaves, read_safetensors, read_torch, require_finite

GIBIBYTE = 1 << 30


def asking(path: Path, module: str, name: str) -> Path:
    """A torch file that calls module.name(2**30)."""
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    call = f"c{module}\n{name}\n".encode() + b"J" + struct.pack("<i", GIBIBYTE) + b"\x85R"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, b"\x80\x02" + call + b"." if entry.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "FloatTensor"),
        ("torch", "Tensor"),
        ("builtins", "bytearray"),
        ("torch.storage", "UntypedStorage"),
        ("os", "system"),
    ],
)
def test_a_file_may_not_ask_for_memory(tmp_path: Path, module: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_torch(asking(tmp_path / "w.pt", module, name))


def test_a_tensor_may_not_tell_of_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.ones(1).expand(4 * GIBIBYTE)}, path)
    with pytest.raises(ConfigError, match="far more numbers"):
        read_torch(path)
    shared = torch.ones(1000)
    torch.save({"w": shared, "tied": shared}, path)
    assert read_torch(path)["tied"].shape == (1000,)


def test_a_file_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt")
    monkeypatch.setattr("threedgen.run.memory.free_bytes", lambda device: 100)
    with pytest.raises(ConfigError, match="GB of memory"):
        read_torch(tmp_path / "w.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    for read in (read_torch, read_safetensors):
        with pytest.raises(ConfigError):
            read(tmp_path / "w.pt")


def test_leaves_are_each_met_once_however_often_they_are_named() -> None:
    tree: list = [1.5]
    for _ in range(100):
        tree = [tree, tree]
    assert list(leaves({"a": tree, "b": (2, {3})})) != [] and sorted(leaves([{"x": 1}, 2]), key=str) == [1, 2, "x"]


def test_what_is_stored_otherwise_is_said() -> None:
    network = torch.nn.Linear(2, 3)
    with pytest.raises(ConfigError, match="bias.*None instead of"):
        compare({"weight": torch.ones(3, 2), "bias": 1}, network.state_dict(), "it")
    with pytest.raises(ConfigError, match="not finite: 'bias'"):
        require_finite({"weight": torch.ones(2), "bias": torch.tensor([float("inf")])}, "weights")


def test_what_a_stranger_wrote_does_not_reach_the_terminal_raw(capfd: pytest.CaptureFixture[str]) -> None:
    code = """if True:
        import logging, warnings
        from threedgen.run.text import clean_logs
        clean_logs(); clean_logs()
        logging.getLogger("a.library").warning("%s", "\\x1b[31mred\\u202e")
        warnings.warn("\\x1b]0;title\\x07")
        try:
            raise ValueError("\\x1b[2J")
        except ValueError:
            logging.exception("failed")
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    said = capfd.readouterr().err
    assert "\x1b" not in said and "\u202e" not in said and "\\x1b[31mred" in said and "\\x1b[2J" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_finite_in_every_type(value: float, kind: torch.dtype) -> None:
    require_finite({"w": torch.tensor([1.0, 6e4], dtype=kind), "n": torch.tensor(3)}, "the weights")
    with pytest.raises(ConfigError, match="the weights are not finite: 'w' holds"):
        require_finite({"w": torch.tensor([1.0, value], dtype=kind)}, "the weights")
