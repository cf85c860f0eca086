from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import refusal
from tests.support.task_server import assert_same
from tests.support.tiny_prior import cpu, tiny_unet
from tests.support.tiny_trainings import scene_base, scene_config
from threedgen import cli
from threedgen.guidance.losses.lora import LoRA
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.priors.mvdiffusion.weights import FORMAT
from threedgen.guidance.weights.files import read_card
from threedgen.systems.train import masks, mvdiffusion_systems
from threedgen.systems.train.mvdiffusion_systems import ViewsSystem

STILL = ("trainer.max_steps=1", "training.learning_rate=0", "single_view.learning_rate=0", "single_view.max_steps=1")
FROM_RUN = "blocks=run/blocks.safetensors"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mvdiffusion_systems, "SHEET_STEPS", 2)
    monkeypatch.setattr(mvdiffusion_systems, "SHEET_SCENES", 1)


def load_base() -> MVDiffusion:
    return MVDiffusion.load(str(scene_base()), dtype="fp32")


def train(path: Path, out: str, *words: str) -> dict[str, torch.Tensor]:
    """Run a config in the folder `out`; return the tensors of its blocks."""
    assert cli.main(["--config", str(path), f"out={out}", *words]) == 0
    return load_file(f"{out}/blocks.safetensors")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    def check(words: list[str], key: str, *values: str) -> None:
        line = refusal(capsys, *words)
        assert line.startswith(f"{key}: ") and all(value in line for value in values), line

    return check


@pytest.mark.parametrize(("variant", "half"), [("panorama", 0.0), ("outpaint", 0.5), ("depth", 0.5)])
def test_run_leaves_the_additions_to_its_base(tmp_path: Path, variant: str, half: float) -> None:
    train(scene_config(tmp_path, variant), "run", f"training.half={half}")
    assert Path("run/latents-half").is_dir() == (half > 0) and Path("run/samples.png").is_file()
    before, found = load_base(), load_base().with_multiview_attention(Path("run/blocks.safetensors"))
    extra = {"panorama": "nothing", "outpaint": "mask", "depth": "depth"}[variant]
    assert found.extra == extra and found.multiview is not None
    assert found.multiview.has_condition == (variant == "depth")
    assert set(read_card(Path("run/blocks.safetensors"), FORMAT)) == {"format"}
    moved = [name for name, value in found.multiview.new_blocks["cp_blocks_mid"].named_parameters() if value.any()]
    assert len(moved) > 5
    x, t = torch.randn(1, 4, 8, 8, generator=cpu()), torch.tensor([300])
    text = before.encode_prompt(["a red dog"])
    with torch.no_grad():
        assert not torch.allclose(found.denoise_views(x, t, text), before.denoise_views(x, t, text), atol=1e-4)


def test_lora_of_the_first_stage_moves_to_the_device() -> None:
    lora = LoRA(tiny_unet(), 2, cpu())
    system: Any = object.__new__(ViewsSystem)
    torch.nn.Module.__init__(system)
    system.set_unregistered(model=SimpleNamespace(to=lambda device: None), lora=lora, _device=torch.device("meta"))
    system.setup("fit")
    assert {parameter.device.type for parameter in lora.parameters()} == {"meta"}


def test_attention_of_another_variant_starts_from_a_run(tmp_path: Path, refused) -> None:
    path = scene_config(tmp_path, "panorama", single_view=None)
    first = train(path, "run", "trainer.max_steps=2")
    assert not any(".up" in name or ".down" in name for name in first if "lora" in name)
    second = train(scene_config(tmp_path, "outpaint"), "other", *STILL, FROM_RUN)
    assert all(torch.equal(first[name], second[name]) for name in first if "cp_blocks_" in name)
    deep = train(scene_config(tmp_path, "depth"), "deep", *STILL, FROM_RUN)
    for name in (name for name in first if ".transformer." in name):
        assert torch.equal(first[name], deep[name.replace(".transformer.", ".attn1.transformer.")])
    path = scene_config(tmp_path, "panorama", single_view=None)
    words = ["out=reference", *STILL[:2], FROM_RUN, "training.encoding=reference"]
    refused(["--config", str(path), *words], "blocks", "training.encoding=capped")


def test_both_stages_or_the_attention_continue_a_run(tmp_path: Path, refused) -> None:
    path = scene_config(tmp_path, "depth")
    words = ["training.slim=true", "single_view.layers=all", "training.optimizer=muon"]
    first = train(path, "run", *words)
    assert_same(first, train(path, "both", *words, *STILL, FROM_RUN))
    refused(["--config", str(path), "out=wide", *words, *STILL, FROM_RUN, "single_view.rank=3"], "blocks")
    words += ["single_view=null", FROM_RUN]
    assert_same(first, train(path, "still", *STILL[:2], *words))
    more = train(path, "more", *words)
    trained = {name for name in first if "cp_blocks_" in name and not name.endswith(".freq_bands")}
    assert {name for name in first if not torch.equal(first[name], more[name])} == trained
    values = ("depth", "mask", "run/blocks.safetensors")
    refused(["--config", str(scene_config(tmp_path, "outpaint")), "out=other", *words], "blocks", *values)


@pytest.mark.parametrize("lost", ["single-view/single-view.safetensors", ""])
def test_no_stage_resumes_from_another_base(tmp_path: Path, lost: str, refused) -> None:
    model = load_base()
    model.save("mine")
    path = scene_config(tmp_path, "panorama", start="mine")
    train(path, "run", "trainer.max_steps=1")
    if lost:
        Path("run", lost).unlink()
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    model.save("mine")
    refused(["--resume", "run", "trainer.max_steps=2"], "start", "SHA-256")


def test_holes_are_a_part_all_or_nothing() -> None:
    rng = np.random.default_rng(3)
    shares = np.array([masks.painted(rng, 32).mean() for _ in range(200)])
    assert (shares == 1).mean() > 0.2 and ((shares > 0) & (shares < 1)).mean() > 0.5
    around = np.array([masks.around_a_photo(rng, 32) for _ in range(200)])
    assert (around.mean((1, 2)) == 0).mean() > 0.15 and not around[:, 16, 16].any()
    assert np.array_equal(around, around[:, ::-1]) and np.array_equal(around, around[:, :, ::-1])
