import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.example_run import SHOWN, Page
from tests.support.fork_server import log
from tests.support.task_server import (
    TINY,
    assert_same,
    finished_run,
    prior_folder,
    saved_at,
    server,
    snapshot,
    tiny_generate,
    weights,
)
from threedgen import cli, config
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.metrics import read_summary
from threedgen.systems.generate import task as generate_run
from threedgen.systems.generate.result import FILES
from threedgen.systems.generate.views import sample_views
from threedgen.viewer.record import read_record
from threedgen.viewer.report import PAGE, PLOTS

STEPS = TINY["trainer"]["max_steps"]


def command(folder: Path, *overrides: str) -> list[str]:
    """Return the arguments of a run in `folder`/run."""
    return ["--config", str(tiny_generate(folder)), "out=run", *overrides]


def undisturbed() -> Path:
    return finished_run(command)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(undisturbed(), tmp_path / "run")
    return tmp_path


def test_run_writes_its_files_its_page_and_a_checkpoint_without_prior_and_path() -> None:
    run = undisturbed()
    assert all((run / name).stat().st_size > 100 for name in (*FILES, "config.yaml", "metrics.csv"))
    assert not list(run.rglob("*.tmp"))
    summary = read_summary(run)
    assert summary["status"] == "finished" and summary["steps"] == STEPS and summary["files"] == [*FILES, PAGE]
    assert summary["prompt"] == "a red dog" and summary["triangles"] > 10
    assert summary["seconds_of"].keys() == {"prepare", "optimise", "export"}
    with Image.open(run / "views.png") as views, Image.open(run / "preview.png") as preview:
        assert views.size == preview.size == (2 * 16 + 3 * 2, 16 + 2 * 2)
    assert np.asarray(Image.open(run / "views.png")).std() > 1
    output = log(run.parent)
    assert output.splitlines()[0] == "tiny: generate in run" and output.splitlines()[-1] == "run"
    parts = {name.partition(".")[0] for name in weights(run)}
    assert parts == {"field", "background", "occupancy", "refine_images"}
    assert str(run.parent).encode() not in (run / "checkpoints" / "last.ckpt").read_bytes()
    page = Page((run / PAGE).read_text(encoding="utf-8"))
    for name, file in SHOWN.items():
        assert page.decoded(name) == (run / file).read_bytes(), file
    keys = {title: key for key, title, _ in PLOTS}
    plots = [given["aria-label"].split(":")[0] for tag, given in page.attributes if tag == "svg"]
    assert [keys[title] for title in plots] == ["loss", "step_seconds", "opacity", "t"]


ASSET = ["export.enabled=true", "export.budget=200", "export.texture=64", "export.lods=[]", "export.resolution=16",
         "export.refine=2"]  # fmt: skip


def test_run_writes_its_asset(tmp_path: Path) -> None:
    words, run = command(tmp_path, *ASSET, "prompt=a shiny red dog"), tmp_path / "run"
    assert server().run(tmp_path, words=words) == 0, log(tmp_path)
    summary, asset = read_summary(run), run / "asset" / "a_shiny_red_dog.glb"
    assert summary["asset"]["file"] == "asset/a_shiny_red_dog.glb"
    assert summary["files"] == [*FILES, "asset/a_shiny_red_dog.glb", PAGE]
    assert not any("does not know" in note for note in summary["notes"]), "shiny sets the material"
    assert "(0.5 m high" in log(tmp_path) and log(tmp_path).splitlines()[-1] == "run"
    assert_same(weights(run), weights(undisturbed()))  # the asset has no part in what is learnt
    before = asset.read_bytes()
    assert server().run(tmp_path, words=["--resume", "run"]) == 0
    assert "its files are unchanged; " in log(tmp_path) and "exports it with other options\n" in log(tmp_path)
    assert asset.read_bytes() == before
    asset.unlink()
    assert server().run(tmp_path, words=["--resume", "run"]) == 0, log(tmp_path)
    assert asset.read_bytes() == before and "asset: run/asset/a_shiny_red_dog.glb" in log(tmp_path)


def test_kills_during_and_after_the_run_keep_its_result(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert server().run(tmp_path, words=command(tmp_path), die_in="os.replace") == -signal.SIGKILL
    assert [path.name.partition(".yaml")[0] for path in run.glob("*.tmp")] == ["config"]
    for hold in (5, 10, 14):
        server().killed(tmp_path, words=command(tmp_path), hold_at=hold)
    for dies in ("threedgen.run.metrics.csv_table", "threedgen.train.task.write_summary"):  # after the last step
        assert server().run(tmp_path, words=["--resume", "run"], die_in=dies) == -signal.SIGKILL
    lines = (run / "metrics.jsonl").read_bytes()
    assert server().run(tmp_path, words=["--resume", "run"]) == 0, log(tmp_path)
    assert (run / "metrics.jsonl").read_bytes() == lines and (run / "metrics.csv").read_text().count("\n") == 5
    assert snapshot(run).keys() == snapshot(undisturbed()).keys()
    assert_same(weights(run), weights(undisturbed()))
    assert read_summary(run)["triangles"] == read_summary(undisturbed())["triangles"]
    assert (run / "views.png").read_bytes() == (undisturbed() / "views.png").read_bytes()


def test_ctrl_c_saves_and_finish_makes_the_asset(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert server().run(tmp_path, words=[*command(tmp_path), "--finish"]) == 2, "there is no checkpoint yet"
    assert server().signalled(tmp_path, signal.SIGINT, words=command(tmp_path), hold_at=6) == 130, log(tmp_path)
    assert saved_at(run) and not (run / "summary.json").exists() and not (run / "views.png").exists()
    assert not read_record(run).has_result
    assert server().run(tmp_path, words=["--resume", "run", "--finish"]) == 0, log(tmp_path)
    summary = read_summary(run)
    assert summary["status"] == "interrupted" and summary["steps"] == 7
    assert all((run / name).exists() for name in FILES)
    assert Page((run / PAGE).read_text(encoding="utf-8")).has_class("interrupted")
    assert log(tmp_path).count("stopping after this step") == 1
    assert "Traceback" not in log(tmp_path)
    assert server().run(tmp_path, words=command(tmp_path)) == 0
    summary = read_summary(run)
    assert summary["status"] == "finished"
    assert_same(weights(run), weights(undisturbed()))
    assert summary["seconds"] == pytest.approx(sum(summary["seconds_of"].values()), abs=0.05)


def test_validation_logging_and_saving_keep_the_result(tmp_path: Path) -> None:
    changed = ("trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "checkpoint.seconds=1000")
    assert server().run(tmp_path, words=[*command(tmp_path, *changed), "--quiet"]) == 0, log(tmp_path)
    assert_same(weights(tmp_path / "run"), weights(undisturbed()))
    images = [path.name for path in sorted((tmp_path / "run" / "validation").iterdir())]
    assert images == [f"{step:06d}.png" for step in range(3, STEPS + 1, 3)]
    assert log(tmp_path) == "run\n"  # --quiet: only the folder


def test_other_thread_count_warns_and_changes_little(tmp_path: Path) -> None:
    words = command(tmp_path)
    assert server().signalled(tmp_path, signal.SIGTERM, words=words, hold_at=8) == 143
    assert server().run(tmp_path, words=["--resume", "run", "threads=2"]) == 0, log(tmp_path)
    assert log(tmp_path).count("threads 1/1 -> 2/1") == 1
    one, other = (np.asarray(Image.open(run / "views.png"), float) for run in (undisturbed(), tmp_path / "run"))
    assert np.abs(one - other).mean() < 3


def test_repeated_command_does_no_work(copy: Path) -> None:
    before = snapshot(copy / "run")
    for words in (command(copy), ["--resume", "run"], ["--resume", "run", "export.enabled=true"]):
        assert server().run(copy, words=words) == 0, log(copy)
    assert snapshot(copy / "run") == before
    assert log(copy).count("finished already") == 3 and log(copy).count("--config export run=run") == 1
    assert log(copy).splitlines()[-1] == "run"


def test_lost_result_is_rewritten_without_training(copy: Path) -> None:
    trained = saved_at(copy / "run")
    (copy / "run" / "mesh.glb").unlink()
    assert server().run(copy, words=command(copy)) == 0, log(copy)
    assert (copy / "run" / "mesh.glb").read_bytes() == (undisturbed() / "mesh.glb").read_bytes()
    assert saved_at(copy / "run") == trained


def test_refused_shorter_run_keeps_its_config(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    (copy / "run" / "summary.json").unlink()  # as in an unfinished run
    before = (copy / "run" / "config.yaml").read_bytes()
    assert cli.main(["--resume", "run", f"trainer.max_steps={STEPS - 1}", "-q"]) == 2
    assert (copy / "run" / "config.yaml").read_bytes() == before


def test_nan_of_the_prior_stops_the_run_and_keeps_the_state(tmp_path: Path) -> None:
    words = command(tmp_path, "trainer.max_steps=24")
    assert server().run(tmp_path, words=words, nan_from=7) == 2
    output, run = log(tmp_path), tmp_path / "run"
    sentence = "the loss term 'distillation' is not finite for 10 steps in a row; the last good checkpoint is kept"
    assert output.count(sentence) == 1 and "Traceback" not in output
    assert sentence in read_summary(run)["reason"] and read_summary(run)["status"] == "failed"
    assert not (run / "views.png").exists()
    assert sentence in " ".join(Page((run / PAGE).read_text(encoding="utf-8")).texts["li"])
    state = weights(run)
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


def test_damaged_caches_are_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prior = MVDream.load(str(prior_folder()), dtype="fp32")
    options = config.load(tiny_generate(tmp_path / "config"))

    def ask() -> tuple[Any, Any]:
        text = generate_run.embeddings(options, prior, ["a red dog", "a cat"], None, tmp_path)
        return text, sample_views(options, prior, text, None, tmp_path)[0]

    first = ask()
    assert first[0].shape[0] == 2 and first[1].shape == (2, 16, 16, 3)
    for name in ("text.safetensors", "preview.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        (tmp_path / "preview.png").unlink()
        for made, again in zip(first, ask(), strict=True):
            assert torch.equal(made, again)
        assert name in caplog.text
        assert (tmp_path / "preview.png").exists()
    assert len(caplog.records) == 2 and not list(tmp_path.glob("*.tmp"))
