"""The task "train-mvadapter", by a tiny 2D model: what it leaves, what it leaves alone, that a killed run ends the
same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.marks import unix
from tests.support.task_server import TINY_MVADAPTER, assert_killed_ends_the_same, assert_same, weights, write_config
from tests.support.tiny_mvadapter import tiny_model
from tests.support.tiny_prior import cpu, tiny_prior
from threedgen import cli, config
from threedgen.guidance.mvadapter.cameras import RAY_VIEWS, views
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.network import AdaptedUNet
from threedgen.guidance.weights.loading import identify
from threedgen.run.metrics import read_summary
from threedgen.systems.train_mvadapter import task
from threedgen.systems.train_mvadapter.system import denoising_loss, left_out
from threedgen.train import checkpoint_file
from threedgen.train.task import Task

STEPS = TINY_MVADAPTER["trainer"]["max_steps"]
RESULT = "adapter.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    tiny_model().save(folder)
    return folder


def tiny(folder: Path, base: Path, training: dict[str, Any] | None = None, **values: Any) -> Path:
    values["training"] = TINY_MVADAPTER["training"] | (training or {})
    return write_config(folder / "tiny.yaml", TINY_MVADAPTER, start=str(base), **values)


def load(base: Path) -> MVAdapter:
    return MVAdapter.load(str(base), dtype="fp32")


WHOLE = {"view_sets": []}
FORMS: dict[str, dict[str, Any]] = {
    "rays": {},
    "rays in two sizes": {"image_size": 32, "timestep": "matched", "training": {"half": 0.5, "optimizer": "muon"}},
    "rays in perspective": {"fov": 40.0},
    "geometry": {"control": "geometry", "guider_downscale": 1, "guider_fine": True, "training": WHOLE},
    "serial, words alone": {"branches": ["mv"], "arrangement": "serial", "training": {"no_image": None}},
    "guider alone": {"branches": [], "training": {"no_image": None}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_run_leaves_an_adapter_of_its_base(
    tmp_path: Path, base: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", str(tiny(tmp_path, base, **FORMS[form])), "out=run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(Path("run", RESULT))
    summary = read_summary(Path("run"))
    assert summary["status"] == "finished" and summary["steps"] == STEPS and Path("run/samples.png").is_file()
    found = load(base).with_adapter(Path("run", RESULT))
    network = found.adapted
    assert network is not None and network.branches == tuple(FORMS[form].get("branches", ("mv", "ref")))
    assert network.form.control == FORMS[form].get("control", "rays") and found.fov == FORMS[form].get("fov", 0.0)
    assert network.form.layout == ("rowcol" if form == "geometry" else "row")
    for branch in network.branches:
        moved = [name for name, value in network.adapter_state().items() if f"to_out_{branch}" in name and value.any()]
        assert len(moved) > 3, f"nothing was learnt by {branch}"
    control = torch.rand(6, 6, 16, 16, generator=cpu())
    picture = torch.rand(16, 16, 3, generator=cpu()) if "ref" in network.branches else None
    drawn = found.sample_views("a red dog", control, picture, steps=1, generator=cpu())
    assert drawn.shape == (6, 16, 16, 3) and torch.isfinite(drawn).all()


class Training(NamedTuple):
    """In this process: its model at the end, what the network was given in each step, and what was saved."""

    model: MVAdapter
    given: list[tuple[Any, ...]]
    state: dict[str, Any]
    run: Path


@pytest.fixture(scope="module")
def training(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    models: list[MVAdapter] = []
    seen: list[tuple[Any, ...]] = []

    def network(self: MVAdapter, *given: Any, real: Any = MVAdapter.network) -> torch.Tensor:
        if torch.is_grad_enabled():
            models.append(self)
            seen.append(given)
        return real(self, *given)

    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MVAdapter, "network", network)
        task.train(Task(config.load(tiny(folder, base), [f"out={folder / 'run'}"]), quiet=True))
    return Training(models[0], seen, weights(folder / "run"), folder / "run")


def test_the_base_stays_bit_for_bit(base: Path, training: Training) -> None:
    before, after = load(base), training.model
    for part in ("unet", "vae", "text_encoder"):
        old, new = dict(getattr(before, part).state_dict()), dict(getattr(after, part).state_dict())
        assert_same({name: new[name] for name in old}, old)
        assert all(".processor." in name for name in new.keys() - old.keys())
    state = training.state
    assert not any("conv_in.weight" == name.rpartition("unet.")[2] for name in state)
    assert sum(name.startswith("parts.") for name in state) == sum(name.startswith("average.") for name in state)
    saved = checkpoint_file.read(training.run / "checkpoints" / "last.ckpt")
    assert saved["weights"] == {"start": identify(str(base)).digest}, "another base would not be noticed"


@unix
def test_a_killed_run_ends_the_same(tmp_path: Path, base: Path) -> None:
    def command(folder: Path) -> list[str]:
        return ["--config", str(tiny(folder, base)), "out=run"]

    kills = [(2, "Adapter", ""), (4, "Adapter", "")]
    assert_killed_ends_the_same(tmp_path, command, kills, (RESULT, "samples.png"))


def test_views_of_an_object_share_their_noise_level_and_sets_of_views_take_turns(
    base: Path, training: Training
) -> None:
    seen = training.given
    assert len(seen) == STEPS and {n_view for *_, n_view, _ in seen} == {6, 2}
    rays = load(base).camera(views(RAY_VIEWS, 16, 16).c2w)
    kept = []
    for x, t, text, control, n_view, reference in seen:
        assert len(x) == len(t) == len(text) == 2 * n_view
        first, second = t.view(2, n_view)
        assert len(first.unique()) == len(second.unique()) == 1 and first[0] != second[0]
        assert torch.equal(control[:n_view], rays[[0, 1, 2, 3, 4, 5] if n_view == 6 else [0, 3]])
        kept += [bool(tensor.any()) for tensor in next(iter(reference.values()))]
    assert len(kept) == 2 * STEPS and 2 <= sum(kept) < len(kept), "pictures are left out now and then, and only then"


def test_text_and_pictures_are_left_out_by_three_draws() -> None:
    text, picture = left_out(np.random.default_rng(0), 200_000, (0.1, 0.2, 0.1))
    assert abs(text.mean() - 0.19) < 0.004 and abs(picture.mean() - 0.28) < 0.004
    assert abs((text & picture).mean() - (0.1 + 0.9 * 0.1 * 0.2)) < 0.004
    never = left_out(np.random.default_rng(0), 100, (0.0, 0.0, 0.0))
    assert not never[0].any() and not never[1].any()


def test_the_loss_weighs_each_picture() -> None:
    output, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]])
    assert denoising_loss(output, target, torch.tensor([0.5, 2.0])).item() == (0.5 * 5 + 2 * 2) / 2
    assert denoising_loss(output, target, 1.0).item() == 3.5


def test_a_fresh_adapter_with_its_guider_quiet_is_the_base(tmp_path: Path, base: Path) -> None:
    options = config.load(tiny(tmp_path, base))
    model = load(base)
    network: AdaptedUNet = task.adapt(options, model)
    x, t = torch.randn(6, *model.latent_shape, generator=cpu()), torch.full((6,), 300)
    text = model.encode_prompt(["a red dog"] * 6)
    with torch.no_grad():
        network.guider = None
        assert torch.equal(network(x, t, text, torch.rand(6, 6, 1, 1), 6), load(base).network(x, t, text))
    again = task.adapt(options, load(base)).adapter_state()
    assert_same(task.adapt(options, load(base)).adapter_state(), again)


def test_a_training_begins_with_an_adapter_of_another_run(
    tmp_path: Path, base: Path, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_file(training.run / RESULT)
    still = ["trainer.max_steps=1", "training.learning_rate=0", f"out={tmp_path / 'run'}"]
    words = ["--config", str(tiny(tmp_path, base)), *still, f"adapter={training.run / RESULT}"]
    assert cli.main(words) == 0
    assert_same(load_file(tmp_path / "run" / RESULT), before)
    assert cli.main([*words, "guider_downscale=1", f"out={tmp_path / 'other'}"]) == 2
    assert "has guider_downscale=2, and 1 is asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["start=nowhere"], "start: there is no file or folder 'nowhere'"),
        (["training.fresh=9"], "fresh 9 should not exceed batch 2"),
        (["branches=[mv]"], "training.no_image and no_both leave out pictures, at which branches ['mv'] never look"),
        (["branches=[mv, mv]"], "should each be named once"),
        (["branches=[vm]"], "branches: expected list: mv | ref"),
        (["adapter=nowhere.safetensors"], "adapter: there is no file 'nowhere.safetensors'"),
        (["layout=rowcol"], "layout rowcol is of the six sides of a mesh, control=geometry"),
        (["control=geometry"], "training.view_sets should be left out with layout rowcol"),
        (["training.view_sets=[[0, 6]]"], "view_sets are of different numbers from 0 to 5 (got [0, 6])"),
        (["objects.name=toybx"], "did you mean 'toybox'"),
        (["guider_downscale=3"], "has a feature for each 2 pixels, which 3 does not divide"),
        (["image_size=15"], "15 is not a multiple of 2"),
        (["control=geometry", "training.view_sets=[]", "objects.name=meshes", "objects.path=nowhere"], "no folder"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, base: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny(tmp_path, base, objects={"name": "toybox"})
    assert cli.main(["--config", str(path), *words, f"out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "Traceback" not in said


@pytest.mark.parametrize(("name", "size", "sets"), [("sd21", 512, 0), ("sdxl", 768, 4)])
def test_the_released_values(name: str, size: int, sets: int) -> None:
    """As the authors' configs have them."""
    found = config.load(f"train-mvadapter-{name}")
    o, rate = found.training, partial(config.at, found.training.learning_rate)
    assert (found.image_size, found.branches, found.tokens) == (size, ("mv", "ref"), "row")
    assert (found.shift, found.shift_mode, found.dropouts) == (8.0, "interpolated", (0.1, 0.1, 0.1))
    assert (o.batch, o.weight_decay, o.betas, o.snr_gamma, o.bf16) == (8, 0.01, (0.9, 0.999), 5.0, True) and len(
        o.view_sets
    ) == sets
    assert (rate(0), rate(1000), rate(2000), rate(70_000)) == (0.0, 2.5e-5, 5e-5, 5e-5)
    assert found.trainer.max_steps * o.batch == 10 * 60_000 and found.trainer.gradient_clip_val == 1.0


def test_a_multi_view_model_is_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_prior().save(tmp_path / "prior")
    for number, start in enumerate((str(tmp_path / "prior"), "toybox-prior")):
        assert cli.main(["--config", str(tiny(tmp_path, Path(start))), f"out={tmp_path / str(number)}"]) == 2
        said = capsys.readouterr().err.strip()
        assert "start" in said and "multi-view" in said and "toybox-base" in said and "Traceback" not in said
