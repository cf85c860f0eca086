from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from threedgen.config import load
from threedgen.config.plain_file import read_json
from threedgen.systems.generate import memory, presets
from threedgen.systems.generate.options import GenerateConfig

GPU = torch.device("cuda")


def test_preset_replaces_options_of_the_config_but_not_those_beside_it_or_a_smaller_chunk(tmp_path: Path) -> None:
    found = load("mvdream-sd21", ["prompt=a dog", "preset=memory-8gb"])
    assert (found.scenes_per_step, found.march.chunk, found.prior.cuda_graph) == (1, 65536, False)
    found = load("mvdream-sd21", ["prompt=a dog", "preset=memory-8gb", "scenes_per_step=3"])
    assert (found.scenes_per_step, found.march.chunk) == (3, 65536)
    file = tmp_path / "mine.yaml"
    file.write_text("{base: mvdream-sd21, preset: memory-12gb, march: {chunk: 5000}}")
    found = load(file, ["prompt=a dog"])
    assert (found.scenes_per_step, found.march.chunk) == (1, 5000)
    assert load("mvdream-sd21", ["prompt=a dog", "preset=null"]).scenes_per_step == {0: 2, 5000: 1}
    for chunk, expected in (("5000", 5000), ("300000", 262144), ("auto", 262144), ("null", 262144)):
        config = load("mvdream-sd21", ["prompt=a dog", f"march.chunk={chunk}"])
        assert presets.with_preset(config, "memory-12gb").march.chunk == expected
        assert presets.with_preset(config, "memory-24gb").march.chunk == config.march.chunk


@pytest.mark.parametrize(
    ("free", "name"), [(30e9, None), (21e9, "memory-24gb"), (12e9, "memory-12gb"), (7e9, "memory-8gb"), (2e9, None)]
)
def test_first_preset_that_fits_is_chosen_once(free: float, name: str | None, tmp_path: Path, monkeypatch) -> None:
    def figures(config: GenerateConfig, *_: object) -> dict[str, float]:
        if config.march.chunk == "auto":
            return {"step": 20e9 if config.prior.cuda_graph else 18e9, "load": 1e9}
        return {"step": config.march.chunk * 10e9 / 262144, "load": 5e9}

    monkeypatch.setattr(memory, "memory", figures)
    monkeypatch.setattr(presets, "free_bytes", lambda device: free)
    config = load("mvdream-sd21", ["prompt=a dog"])
    found = presets.choose_preset(config, GPU, tmp_path)
    assert found.preset == (name or "auto") and found.prior.cuda_graph == (name is None)
    assert read_json(tmp_path / presets.PRESET) == {"preset": name}
    monkeypatch.setattr(presets, "free_bytes", lambda device: 100e9)
    assert presets.choose_preset(config, GPU, tmp_path) == found  # as a resumed run needs it
    assert presets.choose_preset(config, torch.device("cpu"), tmp_path) == found
    assert presets.choose_preset(config, torch.device("cpu"), tmp_path / "new") is config
    off = load("mvdream-sd21", ["prompt=a dog", "preset=null"])
    assert presets.choose_preset(off, GPU, tmp_path) is off


@pytest.mark.parametrize("cause", ["no weights", "a plugin needs values"])
def test_no_preset_is_chosen_if_the_memory_is_unknown(cause: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(presets, "free_bytes", lambda device: 1e9)
    config = load("quick-toybox", ["prompt=a dog", *(["prior.weights=none"] if cause == "no weights" else [])])
    if cause != "no weights":
        monkeypatch.setattr(presets, "memory_by_preset", Mock(side_effect=TypeError("no value")))
    assert presets.choose_preset(config, GPU, tmp_path) is config
    assert cause != "no weights" or read_json(tmp_path / presets.PRESET) == {"preset": None}
