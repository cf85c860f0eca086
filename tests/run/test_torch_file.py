import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.errors import Trap, refused
from threedgen.config.errors import OutOfMemory
from threedgen.run.torch_file import leaves, read_safetensors, read_torch, require_finite

GIBIBYTE = 1 << 30


def calling_file(path: Path, module: str, name: str) -> Path:
    """Write a torch file that calls module.name(2**30)."""
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    call = f"c{module}\n{name}\n".encode() + b"J" + struct.pack("<i", GIBIBYTE) + b"\x85R"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, b"\x80\x02" + call + b"." if entry.endswith("data.pkl") else content)
    return path


FUNCTIONS = ("torch FloatTensor", "torch Tensor", "builtins bytearray", "torch.storage UntypedStorage", "os system")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_read_torch_refuses_calls_of_other_functions(tmp_path: Path, function: str) -> None:
    module, name = function.split()
    with refused(None, tmp_path / "w.pt", name):
        read_torch(calling_file(tmp_path / "w.pt", module, name))


@pytest.mark.parametrize("skip_objects", [False, True])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_read_torch_runs_no_code(tmp_path: Path, form: str, skip_objects: bool) -> None:
    path, content = tmp_path / "w.pt", {"state_dict": {"w": torch.ones(4)}, "x": Trap(tmp_path / "trap")}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with refused(None, path, "mkdir" if form == "zip" else "") as caught:
        read_torch(path, skip_objects=skip_objects)
    assert not (tmp_path / "trap").exists()
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_read_torch_refuses_tensors_larger_than_the_file_or_the_memory(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.ones(1).expand(4 * GIBIBYTE)}, path)
    with refused(None, path):
        read_torch(path)
    shared = torch.ones(1000)
    torch.save({"w": shared, "tied": shared}, path)
    assert read_torch(path)["tied"].shape == (1000,)
    monkeypatch.setattr("threedgen.run.memory.free_bytes", lambda device: 100)
    with refused(None, path, "GB", kind=OutOfMemory):
        read_torch(path)


def test_leaves_visits_shared_containers_once() -> None:
    tree: list = [1.5]
    for _ in range(100):
        tree = [tree, tree]
    assert list(leaves({"a": tree, "b": (2, {3})})) != [] and sorted(leaves([{"x": 1}, 2]), key=str) == [1, 2, "x"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_require_finite_checks_every_dtype(value: float, kind: torch.dtype) -> None:
    require_finite({"w": torch.tensor([1.0, 6e4], dtype=kind), "n": torch.tensor(3)}, "the weights")
    with refused(None, "the weights", "'w'"):
        require_finite({"w": torch.tensor([1.0, value], dtype=kind)}, "the weights")


def test_structure_of_files_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {str(k): torch.ones(1) for k in range(5)}
    torch.save(tensors, tmp_path / "a.pt")
    save_file(tensors, tmp_path / "a.safetensors")
    for read, name, limit in ((read_torch, "a.pt", "0.0001 MB"), (read_safetensors, "a.safetensors", "4 tensors")):
        assert read(tmp_path / name).keys() == tensors.keys()
        monkeypatch.setattr("threedgen.run.torch_file.MAX_PICKLE_BYTES", 100)
        monkeypatch.setattr("threedgen.run.torch_file.MAX_TENSORS", 4)
        with refused(None, tmp_path / name, limit):
            read(tmp_path / name)
        monkeypatch.undo()
