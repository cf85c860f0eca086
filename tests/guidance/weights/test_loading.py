"""Files of a prior: found or named, read without running anything, refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from threedgen import folder
from threedgen.config import ConfigError
from threedgen.guidance.options import MVAdapterConfig, MVDiffusionConfig, MVDreamConfig, StableDiffusionConfig
from threedgen.guidance.weights import files, loading

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "n": torch.ones(4)}


def refused(call: Callable[[], Any], sentence: str = "") -> str:
    """The text of the ConfigError that ``call`` must raise: one line, without torch's dangerous advice."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "weights_only" not in text
    return text


def torch_file(path: Path, content: Any = None) -> Path:
    torch.save(TENSORS if content is None else content, path)
    return path


def safe_file(path: Path) -> Path:
    save_file(TENSORS, path)
    return path


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], t) for name, t in TENSORS.items())


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda t: {"state_dict": t, "global_step": 7}])
def test_torch_files_are_read(tmp_path: Path, wrap: Any) -> None:
    assert equal(files.read_tensors(torch_file(tmp_path / "w.pt", wrap(TENSORS))))


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    assert equal(files.read_tensors(safe_file(tmp_path / "w.bin")))


class Dangerous:
    """Unpickling it would create the file that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_named_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    zipped = torch_file(tmp_path / "zip.pt", {"w": torch.ones(1), "x": Dangerous(trap)})
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Dangerous(trap)))
    legacy = tmp_path / "legacy.pt"
    torch.save({"x": Dangerous(trap)}, legacy, _use_new_zipfile_serialization=False)
    assert "mkdir" in refused(lambda: files.read_tensors(zipped), "holds Python objects")
    refused(lambda: files.read_tensors(bare), "bare pickle")
    refused(lambda: files.read_tensors(legacy), "bare pickle")
    refused(lambda: loading.check(str(bare)), "bare pickle")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"\n <html><body>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04 and no more", "cut off"),
        ((1 << 40).to_bytes(8, "little") + b'{"a"', "cut off"),
        ((2).to_bytes(8, "little") + b"{}", "no named tensors"),
        ((2).to_bytes(8, "little") + b"{]", "not valid safetensors"),
        (b"RIFF0000WAVE", "neither a safetensors nor a torch file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    assert str(path) in refused(lambda: files.read_tensors(path), sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "no named tensors"),
        ({"a": 1}, "no named tensors"),
        ({"state_dict": {}}, "no named tensors"),
        ({"a": torch.ones(2, 2).to_sparse()}, "no plain array"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "no plain array"),
        ({"a": torch.ones(2, device="meta")}, "no plain array"),
    ],
)
def test_torch_files_with_other_content_are_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    path = torch_file(tmp_path / "w.pt", content)
    refused(lambda: files.read_tensors(path), sentence)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    refused(lambda: files.read_tensors(tmp_path / "none.pt"), "cannot be read: No such file")
    refused(lambda: files.read_tensors(tmp_path), "cannot be read")


def mutants(data: bytes, count: int, seed: int = 0) -> list[bytes]:
    """Cut, flipped, shortened and lengthened copies."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        kind, at = draw.randrange(4), draw.randrange(len(data))
        run = draw.randrange(1, 20)
        if kind == 0:
            made.append(data[:at])
        elif kind == 1:
            changed = bytearray(data)
            for i in range(at, min(at + run, len(data))):
                changed[i] = draw.randrange(256)
            made.append(bytes(changed))
        elif kind == 2:
            made.append(data[:at] + data[at + run :])
        else:
            made.append(data[:at] + draw.randbytes(run) + data[at:])
    return made


def put(path: Path, data: bytes) -> Path:
    """In a new file: to write over the old one, hundreds of times, waits for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def test_mutants_of_a_torch_file_are_refused_or_equal(tmp_path: Path) -> None:
    data = torch_file(tmp_path / "w.pt").read_bytes()
    outcomes = []
    for mutant in mutants(data, 400):
        try:
            outcomes.append(equal(files.read_tensors(put(tmp_path / "m.pt", mutant))))
        except ConfigError as error:
            assert "weights_only" not in str(error)
            outcomes.append(None)
    assert False not in outcomes and outcomes.count(None) > 300


def test_mutants_of_a_summed_folder_are_refused_or_equal(tmp_path: Path) -> None:
    path = safe_file(tmp_path / "w.safetensors")
    files.write_sums(tmp_path)
    data, read = path.read_bytes(), 0
    for mutant in mutants(data, 300):
        put(path, mutant)
        try:
            files.check_sums(tmp_path)
        except ConfigError:
            continue
        read += 1
        assert equal(files.read_tensors(path))
    assert read < 30


def test_mutants_of_safetensors_raise_nothing_else(tmp_path: Path) -> None:
    data = safe_file(tmp_path / "w.safetensors").read_bytes()
    for mutant in mutants(data, 300):
        try:
            files.read_tensors(put(tmp_path / "m.safetensors", mutant))
        except ConfigError as error:
            assert "\n" not in str(error)


def test_a_packed_zip_is_refused(tmp_path: Path) -> None:
    plain = torch_file(tmp_path / "w.pt")
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "p.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(lambda: files.read_tensors(tmp_path / "p.pt"), "damaged")


@pytest.mark.parametrize("line", ["0  ../x", "0  /etc/passwd", "0", "0  a\\..\\b"])
def test_sums_never_lead_out_of_the_folder(tmp_path: Path, line: str) -> None:
    (tmp_path / files.SUMS).write_text(line + "\n")
    refused(lambda: files.check_sums(tmp_path), "is damaged")


def test_sums_notice_a_missing_file_and_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"abc")
    files.write_sums(tmp_path)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / files.SUMS).read_text() == f"{known}  sub/a.txt\n"
    files.check_sums(tmp_path)
    (tmp_path / "sub" / "a.txt").unlink()
    refused(lambda: files.check_sums(tmp_path), "lacks the file sub/a.txt")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"[" * 5000, b"\xff\xfe", b" " * (2 << 20)])
def test_bad_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    refused(lambda: files.read_json(tmp_path / "config.json"), "config.json")


class Layer(nn.Module):
    """Two tensors in files, one that is in none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("position_ids", torch.arange(4)[None], persistent=False)


def layer_tensors() -> dict[str, Tensor]:
    return {"linear.weight": torch.arange(6.0).view(2, 3).half(), "linear.bias": torch.ones(2)}


def test_fill_gives_a_frozen_float32_network_and_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    layer = files.fill(Layer, layer_tensors(), "layer")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(layer.linear.weight, torch.arange(6.0).view(2, 3))
    assert torch.equal(layer.position_ids, torch.arange(4)[None])
    assert not layer.training and not any(p.requires_grad for p in layer.parameters())
    assert all(p.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"linear.bias": None}, "1 tensors are missing .first 'linear.bias'"),
        ({"more": torch.ones(1)}, "1 are unknown .first 'more'"),
        ({"linear.weight": torch.ones(3, 2)}, r"\(3, 2\) instead of \(2, 3\)"),
        ({"linear.bias": torch.ones(1).expand(10**12)}, "another shape"),
        ({"linear.bias": torch.tensor([1.0, float("nan")])}, "not finite: 'linear.bias'"),
        ({"linear.bias": torch.tensor([1.0, float("inf")])}, "not finite"),
        ({"linear.bias": torch.tensor([1, 2])}, "not floating point"),
    ],
)
def test_fill_refuses_what_does_not_fit(change: dict[str, Tensor | None], sentence: str) -> None:
    tensors = {name: t for name, t in (layer_tensors() | change).items() if t is not None}
    refused(lambda: files.fill(Layer, tensors, "layer"), sentence)


def test_fill_names_a_config_that_builds_nothing() -> None:
    refused(lambda: files.fill(lambda: nn.Linear(2, "x"), {}, "layer"), "config of the layer")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache, and a hub that cannot be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("no_network")
def test_what_is_missing_says_how_to_get_it() -> None:
    text = refused(lambda: loading.check("sd-v2.1-base-4view.pt"), "neither a file or folder here nor in the")
    assert "hf download MVDream/MVDream sd-v2.1-base-4view.pt" in text and "runs without a download" in text
    text = refused(lambda: loading.check("some/where/sd-v1.5-4view.pt"), "no file or folder")
    assert "hf download MVDream/MVDream sd-v1.5-4view.pt" in text and "runs without a download" in text
    text = refused(lambda: loading.check("someone/model"), "'someone/model' is neither a file or folder here")
    assert "hf download someone/model" in text and "runs without a download" in text
    refused(lambda: loading.locate("someone/model"), "cannot be reached")
    refused(lambda: loading.locate("sd-v1.5-4view.pt"), "cannot be reached")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", ["nowhere", "a/b/c", "../x", "x\0y", "a" * 5000, "~nobody9/x", "a--b/c"])
def test_strange_weights_are_one_sentence(weights: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: loading.check(weights), "weights: ")


def test_the_hub_cache_is_used_without_a_network(no_network: None, tmp_path: Path) -> None:
    repo = tmp_path / "cache" / "models--MVDream--MVDream"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    file = torch_file(repo / "snapshots" / "abc" / "sd-v1.5-4view.pt")
    loading.check("sd-v1.5-4view.pt", str(folder("weights") / "toybox-prior"))
    assert loading.locate("sd-v1.5-4view.pt").samefile(file)
    refused(lambda: loading.check("sd-v1.5-4view.pt"), "holds no tokenizer")


def test_a_local_file_wins_over_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch_file(Path("sd-v1.5-4view.pt"))
    assert loading.locate("sd-v1.5-4view.pt") == Path("sd-v1.5-4view.pt")


def part_folder(path: Path) -> Path:
    """Looks like a diffusers folder to the cheap check."""
    for part in loading.PARTS:
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text("{}")
        safe_file(path / part / "model.safetensors")
    for part in ("scheduler", "tokenizer"):
        (path / part).mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text("{}")
    return path


def test_the_cheap_check_of_a_folder(tmp_path: Path) -> None:
    good = part_folder(tmp_path / "good")
    loading.check(str(good))
    (good / "vae" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(lambda: loading.check(str(good)), "git lfs pull")
    (good / "vae" / "model.safetensors").unlink()
    refused(lambda: loading.check(str(good)), "vae has no weights")
    (good / "vae" / "config.json").unlink()
    refused(lambda: loading.check(str(good)), "config.json cannot be read")


def test_weights_are_described_by_place_size_and_digest(tmp_path: Path) -> None:
    """The digest is what sha256sum prints; of a folder, that of what it prints for the files of tensors."""
    file = torch_file(tmp_path / "w.pt")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert loading.describe(str(file)) == f"{file} (0.00 GB, SHA-256 {digest})"
    folder = part_folder(tmp_path / "good")
    lines = [
        f"{hashlib.sha256((folder / part / 'model.safetensors').read_bytes()).hexdigest()}  {part}/model.safetensors\n"
        for part in loading.PARTS
    ]
    before = loading.describe(str(folder))
    assert before == f"{folder} (0.00 GB, SHA-256 {hashlib.sha256(''.join(lines).encode()).hexdigest()})"
    (folder / "vae" / "model.safetensors").write_bytes(b"changed")
    changed = loading.describe(str(folder))
    assert changed != before
    shutil.copytree(folder / "vae", folder / "coarse")
    assert loading.describe(str(folder)) not in (before, changed), "a coarse predictor belongs to the weights"
    refused(lambda: loading.describe(str(tmp_path / "nowhere")), "weights: there is no file or folder")


def test_shards_are_found_and_cannot_lead_elsewhere(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}}))
    assert loading.tensor_files(tmp_path) == [tmp_path / "m-1.safetensors", tmp_path / "m-2.safetensors"]
    for table in ({"a": "../x"}, {"a": "/etc/passwd"}, {"a": 3}, {}, []):
        index.write_text(json.dumps({"weight_map": table}))
        refused(lambda: loading.tensor_files(tmp_path), "weight_map")


def test_a_missing_embedded_prior_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(loading, "folder", lambda name: tmp_path / name)
    refused(lambda: loading.check("toybox-base"), "lacks the embedded toybox-base")


def test_embedded_means_the_model_that_a_prior_needs() -> None:
    assert MVDreamConfig(weights="embedded").weights == MVDreamConfig().weights == "toybox-prior"
    assert StableDiffusionConfig(weights="embedded").weights == StableDiffusionConfig().weights == "toybox-base"
    assert MVDiffusionConfig(weights="embedded").weights == MVAdapterConfig(weights="embedded").weights == "toybox-base"


def test_a_toybox_prior_of_an_earlier_release_is_refused(tmp_path: Path) -> None:
    folder = part_folder(tmp_path / "old")
    (folder / loading.FORMER_PART).mkdir()
    refused(lambda: loading.check(str(folder)), "toybox prior of an earlier release.*train-toybox-base")


def test_a_tokenizer_that_is_nowhere_is_named(tmp_path: Path) -> None:
    good = str(part_folder(tmp_path / "good"))
    refused(lambda: loading.check(good, tokenizer="not here"), "tokenizer: there is no folder 'not here'")
    loading.check(good, tokenizer=str(tmp_path))


def test_the_cheap_check_imports_no_torch() -> None:
    code = "import sys, threedgen.guidance.weights.loading as m; assert m.check; assert 'torch' not in sys.modules"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)
