"""The task "train-mvdiffusion", by a tiny 2D model: its two stages, what it leaves, that a killed run ends the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.marks import unix
from tests.support.task_server import assert_killed_ends_the_same, write_config
from tests.support.tiny_prior import cpu, tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer
from threedgen import cli, config
from threedgen.guidance.distillation.lora import LoRA
from threedgen.guidance.mvdiffusion.difference import widened
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.run.metrics import read_summary
from threedgen.systems.train_mvdiffusion import masks
from threedgen.systems.train_mvdiffusion.system import Seen, ViewsSystem

PANORAMAS = {"name": "toy-panoramas", "count": 6, "views": 4, "size": 16, "fov": 100.0, "supersample": 1}
PATHS = {"name": "toy-paths", "count": 6, "views": 3, "height": 16, "width": 16, "supersample": 1}
SCENES = {"panorama": PANORAMAS, "outpaint": PANORAMAS, "depth": PATHS}
STEPS = 6
TINY: dict[str, Any] = {
    "task": "train-mvdiffusion",
    "threads": 1,
    "single_view": {"max_steps": 4, "batch": 3, "rank": 2},
    "training": {"batch": 2, "first": 3, "sheet_scenes": 1, "sheet_steps": 2, "learning_rate": 0.01, "ema": 0.5},
    "trainer": {"max_steps": STEPS, "val_check_interval": 0, "log_every_n_steps": 2, "accelerator": "cpu"},
    "checkpoint": {"seconds": 0},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    plain = tiny_unet(class_embed_type=None, projection_class_embeddings_input_dim=None)
    MVDiffusion(plain, tiny_vae(), tiny_text_encoder(), word_tokenizer(), dtype="fp32").save(folder)
    return folder


def tiny(folder: Path, base: Path, variant: str, **values: Any) -> Path:
    places = {"start": str(base), "variant": variant, "scenes": SCENES[variant]}
    return write_config(folder / "tiny.yaml", TINY, **{**places, **values})


@pytest.mark.parametrize(("variant", "half"), [("panorama", 0.0), ("outpaint", 0.5), ("depth", 0.5), ("depth", 0.0)])
def test_a_run_leaves_what_is_to_be_added_to_its_base(
    tmp_path: Path,
    base: Path,
    variant: str,
    half: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny(tmp_path, base, variant)
    slim = variant == "depth" and not half
    more = ["training.sheet_scenes=7"] if variant == "depth" else []  # than there are scenes
    more += ["training.slim=true", "single_view.layers=all"] if slim else []
    assert cli.main(["--config", str(path), "out=run", f"training.half={half}", *more]) == 0
    assert Path("run/latents-half").is_dir() == (half > 0)
    assert capsys.readouterr().out.splitlines()[-1] == str(Path("run", "blocks.safetensors"))
    summary = read_summary(Path("run"))
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    assert Path("run/samples.png").is_file() and Path("run/single-view/single-view.safetensors").is_file()
    before = MVDiffusion.load(str(base), dtype="fp32")
    found = MVDiffusion.load(str(base), dtype="fp32").with_blocks(Path("run/blocks.safetensors"))
    extra = {"panorama": "nothing", "outpaint": "mask", "depth": "depth"}[variant]
    assert found.extra == extra and found.multiview is not None
    assert found.multiview.has_condition == (variant == "depth" and not slim)
    expected = {"panorama": {"k", "neighbours"}, "outpaint": {"k", "neighbours", "mask"}, "depth": {"overlap"}}[variant]
    assert set(found.trained_options) == expected | {"format"}
    moved = [name for name, value in found.multiview.new_blocks["cp_blocks_mid"].named_parameters() if value.any()]
    assert len(moved) > 5, "nothing was learnt between views"
    x, t = torch.randn(1, 4, 8, 8, generator=cpu()), torch.tensor([300])
    text = before.encode_prompt(["a red dog"])
    with torch.no_grad():
        assert not torch.allclose(found.denoise_views(x, t, text), before.denoise_views(x, t, text), atol=1e-4)


def test_what_the_first_stage_added_follows_to_the_device() -> None:
    lora = LoRA(tiny_unet(), 2, cpu())
    system = SimpleNamespace(model=SimpleNamespace(to=lambda device: None), lora=lora, device=torch.device("meta"))
    ViewsSystem.setup(system, "fit")  # type: ignore[arg-type]
    assert {parameter.device.type for parameter in lora.parameters()} == {"meta"}


def test_a_model_that_knows_such_views_needs_no_first_stage(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny(tmp_path, base, "panorama", single_view=None)
    assert cli.main(["--config", str(path), "out=run", "trainer.max_steps=2"]) == 0
    stored = load_file("run/blocks.safetensors")
    assert not any(".up" in name or ".down" in name for name in stored if "lora" in name)
    path = tiny(tmp_path, base, "depth", single_view=None)
    capsys.readouterr()
    assert cli.main(["--config", str(path), "out=other"]) == 2
    assert "single_view" in (said := capsys.readouterr().err) and "told nothing" in said and "\n" not in said.strip()


def test_a_base_that_is_told_something_else_is_refused_at_once(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = MVDiffusion.load(str(base), dtype="fp32")
    model.unet = widened(model.unet, 1)
    model.save("deep")
    assert cli.main(["--config", str(tiny(tmp_path, Path("deep"), "outpaint")), "out=run"]) == 2
    assert "told depth" in capsys.readouterr().err and not Path("run", "single-view").exists()


def test_the_attention_begins_with_that_of_another_run(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny(tmp_path, base, "panorama", single_view=None)
    still = ["trainer.max_steps=1", "training.learning_rate=0", "blocks=run/blocks.safetensors"]
    assert cli.main(["--config", str(path), "out=run", "trainer.max_steps=2"]) == 0
    assert cli.main(["--config", str(tiny(tmp_path, base, "outpaint")), "out=other", *still]) == 0
    first, second = (load_file(f"{name}/blocks.safetensors") for name in ("run", "other"))
    for name in (name for name in first if "cp_blocks_" in name):
        assert torch.equal(first[name], second[name])
    assert cli.main(["--config", str(tiny(tmp_path, base, "depth")), "out=deep", *still]) == 0
    deep = load_file("deep/blocks.safetensors")
    for name in (name for name in first if ".transformer." in name):
        assert torch.equal(first[name], deep[name.replace(".transformer.", ".attn1.transformer.")])
    save_file({name: tensor for name, tensor in first.items() if "norm2" not in name}, "damaged.safetensors")
    capsys.readouterr()
    assert cli.main(["--config", str(path), "out=broken", *still[:2], "blocks=damaged.safetensors"]) == 2
    assert "blocks: the attention between views" in (said := capsys.readouterr().err) and "Traceback" not in said
    still[-1] = "blocks=nowhere.safetensors"
    assert cli.main(["--config", str(path), "out=none", *still]) == 2
    assert "nowhere.safetensors" in capsys.readouterr().err and not Path("none").exists()


@pytest.mark.parametrize("rank", ["2", "null"])
def test_without_a_first_stage_a_run_goes_on_with_all_that_another_left(
    tmp_path: Path, base: Path, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny(tmp_path, base, "depth")
    words = ["training.slim=true", "training.sheet_scenes=0", "training.optimizer=muon"]
    assert cli.main(["--config", str(path), "out=run", *words, f"single_view.rank={rank}"]) == 0
    words += ["single_view=null", "blocks=run/blocks.safetensors"]
    assert (
        cli.main(["--config", str(path), "out=still", "trainer.max_steps=1", "training.learning_rate=0", *words]) == 0
    )
    first, still = (load_file(f"{name}/blocks.safetensors") for name in ("run", "still"))
    assert first.keys() == still.keys() and all(torch.equal(first[name], still[name]) for name in first)
    assert cli.main(["--config", str(path), "out=more", *words]) == 0
    more = load_file("more/blocks.safetensors")
    assert {name for name in first if not torch.equal(first[name], more[name])} == {
        name for name in first if "cp_blocks_" in name and not name.endswith(".freq_bands")
    }
    assert cli.main(["--config", str(path), "out=more", f"trainer.max_steps={STEPS + 2}", *words]) == 0
    longer = load_file("more/blocks.safetensors")
    assert any(not torch.equal(more[name], longer[name]) for name in more), "a run that was stopped goes on"
    capsys.readouterr()
    assert cli.main(["--config", str(tiny(tmp_path, base, "outpaint")), "out=other", *words]) == 2
    assert "blocks: " in (said := capsys.readouterr().err) and "is told depth" in said and "Traceback" not in said


def test_both_stages_go_on_from_another_run_of_the_same_variant(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny(tmp_path, base, "depth")
    words = ["training.slim=true", "training.sheet_scenes=0"]
    assert cli.main(["--config", str(path), "out=run", *words]) == 0
    still = [*words, "blocks=run/blocks.safetensors", "training.learning_rate=0", "single_view.learning_rate=0"]
    assert cli.main(["--config", str(path), "out=still", *still, "trainer.max_steps=1"]) == 0
    first, second = (load_file(f"{name}/blocks.safetensors") for name in ("run", "still"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert cli.main(["--config", str(path), "out=other", *still, "single_view.rank=3"]) == 2
    assert "blocks: the additions" in (said := capsys.readouterr().err) and "Traceback" not in said


@pytest.mark.parametrize("lost", ["single-view/single-view.safetensors", ""])
def test_no_stage_goes_on_from_another_base(
    tmp_path: Path, base: Path, lost: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = MVDiffusion.load(str(base), dtype="fp32")
    model.save("mine")
    words = ["out=run", "trainer.max_steps=1", "training.sheet_scenes=0"]
    assert cli.main(["--config", str(tiny(tmp_path, Path("mine"), "panorama")), *words]) == 0
    if lost:
        Path("run", lost).unlink()
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    model.save("mine")
    capsys.readouterr()
    assert cli.main(["--resume", "run", "trainer.max_steps=2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("start: ") and "with other weights (SHA-256" in said and "another output folder" in said


@unix
def test_a_run_killed_in_either_stage_ends_the_same(tmp_path: Path, base: Path) -> None:
    def command(folder: Path) -> list[str]:
        return ["--config", str(tiny(folder, base, "outpaint")), "out=run"]

    kills = [(2, "SingleView", "single-view"), (3, "Views", "")]
    files = ("blocks.safetensors", "samples.png", "single-view/single-view.safetensors")
    assert_killed_ends_the_same(tmp_path, command, kills, files)


@pytest.mark.parametrize(
    ("variant", "words", "values"),
    [
        ("depth", ["scenes.name=toy-panoramas"], ("variant depth",)),
        ("panorama", ["k=4"], ("k 4", "5")),
        ("panorama", ["scenes.views=1"], ("scenes.views 1", "90", "360")),
        ("outpaint", ["scenes.views=4"], ("scenes.views 4", "scenes.views=5")),
        (
            "depth",
            ["training.encoding=reference", "scenes.height=20", "scenes.width=20", "scenes.views=2"],
            ("scenes: ", "depth", "20 x 20", "24"),
        ),
        ("outpaint", ["scenes.size=17"], ("scenes: ", "17 x 17", "4", "16", "20")),
        ("panorama", ["scenes.size=18"], ("scenes: ", "18 x 18", "4", "16", "20")),
        ("panorama", ["start=nowhere"], ("start: ", "'nowhere'")),
        ("panorama", ["training.fresh=9"], ("fresh 9", "batch 2")),
        ("panorama", ["scenes.name=toy-panorama"], ("scenes", "'toy-panoramas'")),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    base: Path,
    variant: str,
    words: list[str],
    values: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenes = {"name": SCENES[variant]["name"]}
    path = tiny(tmp_path, base, variant, scenes=scenes)
    assert cli.main(["--config", str(path), *words, f"out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip()
    assert all(value in said for value in values) and "Traceback" not in said, said


def test_the_views_of_a_scene_share_their_noise_level(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threedgen.systems.train_mvdiffusion import system as module
    from threedgen.systems.train_mvdiffusion.task import train
    from threedgen.train.task import Task

    seen: list[torch.Tensor] = []
    real = module.denoising_loss

    def loss(model: Any, z: Any, captions: Any, t: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(z) == 8:
            seen.append(t)
        return real(model, z, captions, t, *rest)

    monkeypatch.setattr(module, "denoising_loss", loss)
    options = config.load(tiny(tmp_path, base, "panorama", single_view=None), [f"out={tmp_path / 'run'}"])
    train(Task(options, quiet=True))
    assert len(seen) == STEPS
    for t in seen:
        first, second = t.view(2, 4)
        assert len(first.unique()) == len(second.unique()) == 1 and first[0] != second[0]


def test_masks_leave_out_a_part_all_or_nothing() -> None:
    rng = np.random.default_rng(3)
    shares = np.array([masks.painted(rng, 32).mean() for _ in range(200)])
    assert (shares == 1).mean() > 0.2 and ((shares > 0) & (shares < 1)).mean() > 0.5
    around = np.array([masks.around_a_photo(rng, 32) for _ in range(200)])
    assert (around.mean((1, 2)) == 0).mean() > 0.15 and not around[:, 16, 16].any()
    assert np.array_equal(around, around[:, ::-1]) and np.array_equal(around, around[:, :, ::-1])


def test_new_scenes_come_one_by_one(tmp_path: Path, base: Path) -> None:
    class Bank:
        count, n_view = 6, 4

    made: Any = object.__new__(ViewsSystem)
    options = config.load(tiny(tmp_path, base, "panorama"))
    chosen = []
    for step in range(5):
        made.__dict__.update(options=options.training, seen=[(1.0, Seen(Bank))], seed=0)
        made.__dict__["numpy_rng"] = lambda step, purpose: np.random.default_rng(step)
        chosen.append(ViewsSystem.scenes(made, step).tolist())
    assert [row[0] for row in chosen[:3]] == [3, 4, 5]
    assert all(max(row) < 6 for row in chosen)
