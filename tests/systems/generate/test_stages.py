import gc
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import threedgen
from tests.support.fork_server import log
from tests.support.task_server import (
    TINY,
    assert_same,
    finished_run,
    prior_folder,
    saved_at,
    server,
    weights,
    write_config,
)
from threedgen import config
from threedgen.run.metrics import read_summary
from threedgen.systems.generate import optimise, task
from threedgen.train.status import Status

FIELD = TINY["field"] | {"name": "ngp"}
TREE: dict[str, Any] = TINY | {
    "prior": {"name": "stable-diffusion", "weights": str(prior_folder()), "dtype": "fp32"},
    "distillation": {"name": "sds", "min_step_percent": 0.1, "max_step_percent": 0.9},
    "field": {"name": "dmtet", "resolution": 8, "paint": FIELD},
    "warm_start": {"share": 0},
    "size": 12,
    "scenes_per_step": 1,
    "loss": {"normal_consistency": 1.0},
    "trainer": TINY["trainer"] | {"max_steps": 5},
    "stages": {
        "coarse": {"field": FIELD, "loss": {"normal_consistency": 0.0}, "trainer": {"max_steps": 6}},
        "mesh": {"trainer": {"max_steps": 4}},
    },
}


def command(folder: Path, *words: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return ["--config", str(write_config(folder / "staged.yaml", TREE)), "out=run", *words]


def test_stage_starts_from_the_previous_object() -> None:
    run = finished_run(command)
    coarse, middle, last = (weights(run / place) for place in ("stages/coarse", "stages/mesh", "."))
    assert read_summary(run)["steps"] == 5 and read_summary(run / "stages" / "coarse")["steps"] == 6
    assert "field.distance" not in coarse and middle["field.distance"].shape == last["field.distance"].shape
    paint = {n.replace("field.", "field.paint."): value for n, value in coarse.items() if n.startswith("field.")}
    moved = max(float((middle[n] - value).abs().max()) for n, value in paint.items())
    assert 0 < moved < 0.2, "four steps from the coarse field's colours"
    assert float((last["field.low"] - middle["field.low"]).abs().max()) == 0
    assert (run / "mesh.glb").stat().st_size > 100 and (run / "views.png").stat().st_size > 100


def test_run_killed_in_each_stage_resumes_exactly_and_skips_finished_stages(tmp_path: Path) -> None:
    first = tmp_path / "run" / "stages" / "coarse" / "summary.json"
    words = command(tmp_path)
    for step, place in ((4, "stages/coarse"), (2, "stages/mesh"), (1, ".")):  # none has that step before it
        server().killed(tmp_path, words=words, hold_at=step)
        assert saved_at(tmp_path / "run" / place)
        words = ["--resume", "run"]
    before = first.stat().st_mtime_ns
    assert server().run(tmp_path, words=words, die_in="threedgen.systems.generate.optimise.write_results") < 0
    assert not (tmp_path / "run" / "summary.json").exists()
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    assert first.stat().st_mtime_ns == before
    assert_same(weights(tmp_path / "run"), weights(finished_run(command)))


def test_stage_whose_object_is_used_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, run = list[str](), tmp_path / "run"

    def opened(stage: Any, name: str) -> tuple[Any, None]:
        trained.append(name)
        return stage, None

    def save_checkpoint(folder: Path) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()

    monkeypatch.setattr(task.runs, "open_run", opened)
    monkeypatch.setattr(task, "run_status", lambda *args: Status.FINISHED)
    for name in ("coarse", "mesh"):
        save_checkpoint(run / "stages" / name)
        (run / "stages" / name / "summary.json").write_text('{"status": "finished", "steps": 6}')
    longer = [f"stages.{name}.trainer.max_steps=12" for name in ("coarse", "mesh")]
    made = config.load(write_config(tmp_path / "staged.yaml", TREE), longer)
    assert task.run_stages(made, run, quiet=True) == run / "stages" / "mesh" and trained == ["mesh"]
    save_checkpoint(run)
    assert task.run_stages(made, run, quiet=True) == run / "stages" / "mesh" and trained == ["mesh"]
    shutil.rmtree(run / "stages")
    assert task.run_stages(made, run, quiet=True) is None and trained == ["mesh"]


def test_prior_of_a_stage_is_freed_before_the_next_one_is_loaded(tmp_path: Path, monkeypatch) -> None:
    load, priors = task.Task.load_prior, list[Any]()

    def loaded(self: task.Task, **options: Any) -> Any:
        assert [prior() for prior in priors] == [None] * len(priors)
        prior = load(self, **options)
        priors.append(weakref.ref(prior))
        return prior

    monkeypatch.setattr(task.Task, "load_prior", loaded)
    tree = TREE | {"stages": {"coarse": TREE["stages"]["coarse"] | {"trainer": {"max_steps": 1}}}}
    gc.disable()
    try:
        threedgen.generate("a red dog", write_config(tmp_path / "staged.yaml", tree), quiet=True, out=tmp_path / "run")
    finally:
        gc.enable()
    assert len(priors) == 2


def test_object_is_initialised_on_the_device_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config.load(write_config(tmp_path / "staged.yaml", TREE))
    fields, places = [config.registry.build("representation", made.field) for _ in range(2)], list[str]()

    def loaded(folder: Path, place: str = "cpu") -> tuple[Any, ...]:
        return made, fields[1].to(place), None, {"state_dict": {}}

    def init_from(other: torch.nn.Module) -> None:
        places.extend(field.distance.device.type for field in (fields[0], other))

    monkeypatch.setattr(optimise, "device", lambda accelerator: "meta")
    monkeypatch.setattr(optimise, "load_field", loaded)
    monkeypatch.setattr(fields[0], "init_from", init_from)
    system: Any = SimpleNamespace(config=made, field=fields[0], background=torch.nn.Identity())
    optimise.initialise_from(system, tmp_path)
    assert places == ["meta", "meta"]


def test_optimizer_has_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    from threedgen.guidance.schedule import Schedule
    from threedgen.systems.generate.system import GenerateSystem

    tree = {k: v for k, v in TREE.items() if k != "stages"}
    made = config.registry.config_model("task", "generate").model_validate(tree)
    prior: Any = SimpleNamespace(schedule=Schedule.scaled_linear(), cast_networks=lambda lora: None)
    system = GenerateSystem(made, prior, torch.zeros(2, 1, 1))
    monkeypatch.setattr(config.registry, "build", lambda kind, options, groups: torch.optim.RAdam(groups))
    groups = system.configure_optimizers()["optimizer"].param_groups
    assert {group["initial_lr"] for group in groups} == {1.0}  # the schedules are learning rates
    known = {id(p) for group in groups for p in group["params"]}
    assert id(system.field.distance) in known and known == {id(p) for p in system.parameters()}
