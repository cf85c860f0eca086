import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.errors import refused, refused_in_one_line
from threedgen import folder
from threedgen.guidance.weights import files, loading
from threedgen.train.checkpoint import check_weights
from threedgen.train.task import Task

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "n": torch.ones(4)}


def torch_file(path: Path, content: Any = None) -> Path:
    torch.save(TENSORS if content is None else content, path)
    return path


def safe_file(path: Path) -> Path:
    save_file(TENSORS, path)
    return path


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], t) for name, t in TENSORS.items())


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda t: {"state_dict": t, "global_step": 7}, None])
def test_read_tensors_reads_torch_and_safetensors_files(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "w.bin"
    assert equal(files.read_tensors(torch_file(path, wrap(TENSORS)) if wrap else safe_file(path)))


class Settings(dict[str, Any]):
    """A dict of another class, with a state of its own."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.note = "a"


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


@pytest.mark.parametrize(
    "foreign",
    [Settings(lr=0.1, inner=Slotted()), np.float64(2), {int: partial(print, 1), Settings: nn.ReLU()}],
    ids=lambda value: type(value).__name__,
)
def test_python_objects_beside_a_state_dict_are_skipped_and_not_imported(tmp_path: Path, foreign: Any) -> None:
    path = torch_file(tmp_path / "w.ckpt", {"state_dict": TENSORS, "hyper_parameters": foreign, "epoch": 3})
    code = (
        "import sys, pathlib; sys.path.append('.'); from threedgen.guidance.weights import files;"
        "found = files.read_tensors(pathlib.Path(sys.argv[1])); assert len(found) == 3, found;"
        "assert not any(name.startswith('tests') for name in sys.modules)"
    )
    assert equal(files.read_tensors(path))
    if isinstance(foreign, Settings):
        subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[3], check=True, timeout=120)
    with refused_in_one_line(None, path):
        files.read_tensors(torch_file(path, {"state_dict": TENSORS, "x": TENSORS["n"].to_sparse()}))
    with refused_in_one_line(None, path):
        files.read_tensors(torch_file(path, {"hyper_parameters": foreign}))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"", ""),
        (b"<!DOCTYPE html><html>not found</html>", ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04 and no more", ""),
        ((1 << 40).to_bytes(8, "little") + b'{"a"', ""),
        ((2).to_bytes(8, "little") + b"{}", ""),
        ((2).to_bytes(8, "little") + b"{]", "safetensors"),
        (b"RIFF0000WAVE", "safetensors"),
        (pickle.dumps({"a": 1}), "pickle"),
        ({"a": 1}, ""),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
        ({"a": torch.ones(2, device="meta")}, ""),
        (b"GGUF" + bytes(100), "GGUF"),
    ],
)
def test_read_tensors_refuses_other_content(tmp_path: Path, content: Any, value: str) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch_file(path, content)
    with refused_in_one_line(None, path, value):
        files.read_tensors(path)


def test_read_tensors_refuses_flipped_bits_missing_files_folders_and_compressed_zips(tmp_path: Path) -> None:
    plain, packed, flipped = torch_file(tmp_path / "w.pt"), tmp_path / "p.pt", tmp_path / "f.pt"
    data, number = plain.read_bytes(), TENSORS["a.weight"].numpy().tobytes()
    flipped.write_bytes(data.replace(number, bytes([number[0] ^ 1]) + number[1:]))
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    for path in (tmp_path / "none.pt", tmp_path, packed, flipped):
        with refused_in_one_line(None, path):
            files.read_tensors(path)


def test_save_tensors_raises_os_error_if_the_file_cannot_be_written(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            files.save_tensors(nn.Linear(50, 50), tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_sums_have_sha256sum_format_and_name_missing_and_refuse_outside_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"abc")
    files.write_sums(tmp_path)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / files.SUMS).read_text() == f"{known}  sub/a.txt\n"
    files.check_sums(tmp_path)
    (tmp_path / "sub" / "a.txt").unlink()
    with refused_in_one_line(None, tmp_path, "sub/a.txt"):
        files.check_sums(tmp_path)
    for line in ("0  ../x", "0  /etc/passwd", "0", "0  a\\..\\b"):  # outside the folder
        (tmp_path / files.SUMS).write_text(line + "\n")
        with refused_in_one_line(None, tmp_path / files.SUMS):
            files.check_sums(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"[" * 5000, b"\xff\xfe", b" " * (2 << 20)])
def test_read_json_refuses_bad_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with refused_in_one_line(None, "config.json"):
        files.read_json(tmp_path / "config.json")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("position_ids", torch.arange(4)[None], persistent=False)


LAYER = {"linear.weight": torch.arange(6.0).view(2, 3).half(), "linear.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"linear.bias": None}, [1, "linear.bias"]),
        ({"more": torch.ones(1)}, [1, "more"]),
        ({"linear.weight": torch.ones(3, 2)}, ["linear.weight", (3, 2), (2, 3)]),
        ({"linear.bias": torch.ones(1).expand(10**12)}, ["linear.bias"]),
        ({"linear.bias": torch.tensor([1.0, float("nan")])}, ["linear.bias"]),
        ({"linear.bias": torch.tensor([1, 2])}, ["linear.bias", torch.int64]),
    ],
)
def test_fill_refuses_tensors_that_do_not_fit(change: dict[str, Tensor | None], values: list[Any]) -> None:
    tensors = {name: t for name, t in (LAYER | change).items() if t is not None}
    with refused_in_one_line(None, "layer", *values):
        files.build_from_tensors(Layer, tensors, "layer")


@pytest.fixture
def no_network(no_hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


NAMES = ["sd-v2.1-base-4view.pt", "some/where/sd-v1.5-4view.pt", "someone/model"]
STRANGE = ["nowhere", "a/b/c", "../x", "x\0y", "a" * 5000, "~nobody9/x", "a--b/c"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", [*NAMES, *STRANGE])
def test_missing_weights_are_refused(weights: str) -> None:
    values = (weights, "hf download") if weights in NAMES else ()
    for function in (loading.check, loading.locate):
        with refused_in_one_line("weights", *values):
            function(weights)


def test_hub_cache_is_used_without_network(no_network: None, tmp_path: Path) -> None:
    repo = tmp_path / "cache" / "models--MVDream--MVDream"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    file = torch_file(repo / "snapshots" / "abc" / "sd-v1.5-4view.pt")
    loading.check("sd-v1.5-4view.pt", str(folder("weights") / "toybox-prior"))
    assert loading.locate("sd-v1.5-4view.pt").samefile(file)
    with refused_in_one_line("tokenizer"):
        loading.check("sd-v1.5-4view.pt")
    torch_file(Path("sd-v1.5-4view.pt"))  # a local file has precedence
    assert loading.locate("sd-v1.5-4view.pt") == Path("sd-v1.5-4view.pt")


def part_folder(path: Path) -> Path:
    """A folder that passes `check`: readable-looking parts of a diffusers folder."""
    for part in loading.PARTS:
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text("{}")
        safe_file(path / part / "model.safetensors")
    for part in ("scheduler", "tokenizer"):
        (path / part).mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text("{}")
    return path


def test_check_refuses_damaged_folders(tmp_path: Path, monkeypatch: Any) -> None:
    good = part_folder(tmp_path / "good")
    loading.check(str(good))
    loading.check(str(good), tokenizer=str(tmp_path))
    with refused_in_one_line("tokenizer", "not here"):
        loading.check(str(good), tokenizer="not here")
    vae = good / "vae"
    (vae / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with refused_in_one_line(None, vae, "git lfs pull"):
        loading.check(str(good))
    for name, missing in (("model.safetensors", vae), ("config.json", vae / "config.json")):
        (vae / name).unlink()
        with refused_in_one_line(None, missing):
            loading.check(str(good))
    monkeypatch.setattr(loading, "folder", lambda name: tmp_path / name)
    with refused_in_one_line("weights", "toybox-base"):
        loading.check("toybox-base")


def test_digest_of_a_folder_depends_on_all_networks(tmp_path: Path) -> None:
    folder = part_folder(tmp_path / "good")
    digests = [loading.identify(str(folder)).digest]
    (folder / "vae" / "model.safetensors").write_bytes(b"changed")
    digests.append(loading.identify(str(folder)).digest)
    shutil.copytree(folder / "vae", folder / "coarse")
    digests.append(loading.identify(str(folder)).digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae/config.json", "tokenizer/merges.txt"])
def test_identity_of_a_folder_depends_on_its_configs(tmp_path: Path, name: str) -> None:
    folder = part_folder(tmp_path / "good")
    before = loading.identify(str(folder))
    (folder / name).write_text('{"a": 1}')
    after = loading.identify(str(folder))
    assert after.digest == before.digest and after.configs != before.configs
    task = Task(SimpleNamespace(out=tmp_path), quiet=True)
    task.record_weights({"start": before}, "prior.")
    with refused("prior.start (configs)"):
        check_weights({"weights": task.weights}, {"prior.start (configs)": after.configs})
    old = {"prior.start": before.digest}  # written before configs were recorded
    check_weights({"weights": old}, task.weights)


def test_identity_of_a_peft_file_depends_on_its_config(tmp_path: Path) -> None:
    file, config = safe_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_config.json"
    found = {loading.Identity.of(file).configs}
    for alpha in ("4", "8"):
        config.write_text(alpha)
        found.add(loading.Identity.of(file).configs)
    assert len(found) == 3 and loading.Identity.of(safe_file(tmp_path / "other.safetensors")).configs == ""


def test_tensor_files_lists_shards_inside_the_folder_only(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}}))
    assert loading.tensor_files(tmp_path) == [tmp_path / "m-1.safetensors", tmp_path / "m-2.safetensors"]
    for table in ({"a": "../x"}, {"a": "/etc/passwd"}, {"a": 3}, {}, []):
        index.write_text(json.dumps({"weight_map": table}))
        with refused_in_one_line(None, index, "weight_map"):
            loading.tensor_files(tmp_path)
