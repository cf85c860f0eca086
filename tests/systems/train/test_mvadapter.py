from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.task_server import TINY_MVADAPTER, assert_same, finished_run
from tests.support.tiny_mvadapter import adapter_base
from tests.support.tiny_prior import cpu
from tests.support.tiny_trainings import adapter_command, adapter_config
from threedgen import cli, config
from threedgen.guidance.priors.mvadapter.inputs import RAY_VIEWS, cameras_from_angles
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.weights.loading import identify
from threedgen.run.metrics import read_summary
from threedgen.systems.train import mvadapter, options
from threedgen.train import checkpoint_file
from threedgen.train.task import Task

STEPS = TINY_MVADAPTER["trainer"]["max_steps"]
RESULT = "adapter.safetensors"


@pytest.fixture(autouse=True)
def small_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvadapter, "SHEET_STEPS", 2)
    monkeypatch.setattr(mvadapter, "SHEET_OBJECTS", 1)


def load() -> MVAdapter:
    return MVAdapter.load(str(adapter_base()), dtype="fp32")


WHOLE = {"view_sets": []}
FORMS: dict[str, dict[str, Any]] = {
    "rays in two sizes": {"image_size": 32, "timestep": "matched", "training": {"half": 0.5, "optimizer": "muon"}},
    "rays in perspective": {"fov": 40.0},
    "geometry": {"control": "geometry", "guider_downscale": 1, "guider_fine": True, "training": WHOLE},
    "serial, words alone": {"branches": ["mv"], "arrangement": "serial"},
    "guider alone": {"branches": []},
}


@pytest.mark.parametrize("form", FORMS)
def test_run_leaves_an_adapter_of_its_base(tmp_path: Path, form: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", str(adapter_config(tmp_path, **FORMS[form])), "out=run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(Path("run", RESULT))
    summary = read_summary(Path("run"))
    assert summary["status"] == "finished" and summary["steps"] == STEPS and Path("run/samples.png").is_file()
    saved = checkpoint_file.read(Path("run/checkpoints/last.ckpt"))
    start = identify(str(adapter_base()))
    assert saved["weights"] == {"start": start.digest, "start (configs)": start.configs}
    found = load().with_adapter(Path("run", RESULT))
    network = found.adapted
    assert network is not None and network.branches == tuple(FORMS[form].get("branches", ("mv", "ref")))
    assert network.settings.control == FORMS[form].get("control", "rays") and found.fov == FORMS[form].get("fov", 0.0)
    assert network.settings.layout == ("rowcol" if form == "geometry" else "row")
    for branch in network.branches:
        moved = [name for name, value in network.adapter_state().items() if f"to_out_{branch}" in name and value.any()]
        assert len(moved) > 3, f"nothing was trained by {branch}"
    control = torch.rand(6, 6, 16, 16, generator=cpu())
    picture = torch.rand(16, 16, 3, generator=cpu()) if "ref" in network.branches else None
    drawn = found.sample_views("a red dog", control, picture, steps=1, generator=cpu())
    assert drawn.shape == (6, 16, 16, 3) and torch.isfinite(drawn).all()


def test_views_of_an_object_share_their_noise_level_and_view_sets_are_sampled(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def network(self: MVAdapter, *inputs: Any, real: Any = MVAdapter.network, **condition: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append((*inputs, *condition.values()))
        return real(self, *inputs, **condition)

    monkeypatch.setattr(MVAdapter, "network", network)
    monkeypatch.setattr(options, "DROPPED", 0.5)
    mvadapter.train(Task(config.load(adapter_config(tmp_path), [f"out={tmp_path / 'run'}"]), quiet=True))
    assert len(seen) == STEPS and {n_view for *_, n_view, _ in seen} == {6, 2}
    rays = load().camera(cameras_from_angles(RAY_VIEWS, 16, 16).c2w)
    kept = []
    for x, t, text, control, n_view, reference in seen:
        assert len(x) == len(t) == len(text) == 2 * n_view
        first, second = t.view(2, n_view)
        assert len(first.unique()) == len(second.unique()) == 1 and first[0] != second[0]
        assert torch.equal(control[:n_view], rays[[0, 1, 2, 3, 4, 5] if n_view == 6 else [0, 3]])
        kept += [bool(tensor.any()) for tensor in next(iter(reference.values()))]
    assert len(kept) == 2 * STEPS and 2 <= sum(kept) < len(kept), "pictures are left out now and then, and only then"


def test_text_and_images_are_dropped_by_three_events() -> None:
    text, picture = mvadapter.sample_dropouts(np.random.default_rng(0), 200_000, (0.1, 0.2, 0.1))
    assert abs(text.mean() - 0.19) < 0.004 and abs(picture.mean() - 0.28) < 0.004
    assert abs((text & picture).mean() - (0.1 + 0.9 * 0.1 * 0.2)) < 0.004
    never = mvadapter.sample_dropouts(np.random.default_rng(0), 100, (0.0, 0.0, 0.0))
    assert not never[0].any() and not never[1].any()


def test_training_starts_from_an_adapter_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished_run(adapter_command) / RESULT
    still = ["trainer.max_steps=1", "training.learning_rate=0", f"out={tmp_path / 'run'}"]
    words = ["--config", str(adapter_config(tmp_path)), *still, f"adapter={before}"]
    assert cli.main(words) == 0
    assert_same(load_file(tmp_path / "run" / RESULT), load_file(before))
    assert cli.main([*words, "guider_downscale=1", f"out={tmp_path / 'other'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("adapter: ") and "guider_downscale=2" in err and "guider_downscale=1" in err
