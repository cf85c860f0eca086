import json
from pathlib import Path

import pytest
import torch

from tests.support.task_server import TINY_DREAMBOOTH, prior_folder, snapshot, write_config
from tests.support.tiny_classifiers import tiny_probe
from threedgen import cli
from threedgen.config import load
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.toybox.evaluation import subjects
from threedgen.toybox.evaluation.identity import IdentityNet
from threedgen.toybox.evaluation.options import IdentityNetworkConfig
from threedgen.toybox.evaluation.subject_report import compare, table


def test_compare_rows_of_known_values() -> None:
    def found(identity: list[float], scores: list[float], order: list[bool | None]) -> dict:
        answers = [{"noun": True, "colour": None, "bound": None, "order": o} for o in order]
        return {"identity": identity, "scores": scores, "answers": answers, "held_out": scores, "seconds": 5.0}

    rows = []
    for k in (0.0, 0.2):
        base, tuned = found([0.1, 0.3], [0.5, 0.7], [True, None]), found([0.6 + k, 0.6 + k], [1.0, 1.0], [True, False])
        tuned["class"] = found([0, 0], [0.5, 0.5], [True])
        tuned["held_out"] = [0.4, 0.4]
        rows.append({"subject": f"{k}", "found": {"base": base, "l1": tuned}})
    row = compare(rows, "l1")
    assert row["identity"]["mean"] == pytest.approx(0.7) and row["identity_gain"]["mean"] == pytest.approx(0.5)
    assert row["class_change"] == pytest.approx({"mean": -0.1, "low": -0.1, "high": -0.1})
    assert row["own_change"]["mean"] == pytest.approx(0.4) and row["held_out_change"]["mean"] == pytest.approx(-0.2)
    assert compare(rows[:1], "l1")["own_change"] == {"mean": pytest.approx(0.4), "low": None, "high": None}
    assert (row["order"]["hits"], row["order"]["total"]) == (2, 4) and row["bound"]["total"] == 0
    line = table({"l1": row}).splitlines()[-1]
    assert "preservation L1" in line and "+0.500" in line and "50.0 % (2/4; " in line and "-10.0" in line


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in snapshot(folder).items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in {"ACCESSORIES_WORN": subjects.ACCESSORIES_WORN[:2], "PHOTOS": 2, "HELD_OUT_PROMPTS": 2}.items():
        monkeypatch.setattr(subjects, name, value)
    torch.manual_seed(0)
    small = IdentityNetworkConfig(image_size=32, channels=(8, 8, 16, 16), width=8)
    IdentityNet(small).eval().save(tmp_path / "toybox-identity.safetensors")
    tiny_probe().save(tmp_path / "p.safetensors")
    trainer = TINY_DREAMBOOTH["trainer"] | {"max_steps": 1, "val_check_interval": 0}
    prior = {"weights": str(prior_folder()), "dtype": "fp32"}
    write_config(tmp_path / "tune.yaml", TINY_DREAMBOOTH, prior=prior, trainer=trainer, prompt_check="off")
    config = {
        "task": "evaluate-subjects", "threads": 1, "config": "tune.yaml", "probe": {"weights": "p.safetensors"},
        "identity": {"weights": "toybox-identity.safetensors"}, "subjects": 2,
        "preservation": ["l1", "none"], "strengths": [1.0, 0.5], "steps": 1,
    }  # fmt: skip
    write_config(tmp_path / "evaluate.yaml", config)
    return tmp_path


def test_subjects_are_tuned_measured_and_not_repeated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config", "evaluate.yaml", "out=run", "-q"]
    assert cli.main(words) == 0
    tunings = list(Path("run/subjects").glob("*/*/config.yaml"))
    assert len(tunings) == 4 and all(load(path).trainer.devices == 1 for path in tunings)
    report = json.loads(Path("run/report.json").read_text())
    assert list(report["compared"]) == ["l1", "l1-0.5", "none"] and len(report["subjects"]) == 2
    for row in report["subjects"]:
        for kind in ("base", "l1", "l1-0.5", "none"):
            found = row["found"][kind]
            assert len(found["identity"]) == 2 and len(found["held_out"]) == 2
            assert (Path("run/subjects") / row["subject"] / f"{kind}-1.png").exists()
        base, tuned, some = (row["found"][kind]["identity"] for kind in ("base", "l1", "l1-0.5"))
        assert base != tuned != some
    text = Path("run/report.md").read_text()
    assert "| preservation L1 |" in text and "| preservation L1, strength 0.5 |" in text
    assert Path("run/sheet.png").exists()
    before = contents(Path("run/subjects"))
    monkeypatch.setattr(MVDream, "sample", lambda *a, **k: pytest.fail("sampled again"))
    monkeypatch.setattr("threedgen.train.loop.fit", lambda *a, **k: pytest.fail("tuned again"))
    Path("run/report.md").unlink()
    assert cli.main(words) == 0 and Path("run/report.md").exists()
    assert contents(Path("run/subjects")) == before
    tiny_probe(7).save(place / "p.safetensors")
    with pytest.raises(pytest.fail.Exception, match="sampled again"):  # not tuned again
        cli.main(words)


def test_mistakes_are_named_by_key(place: Path, refuses) -> None:
    words = ["--config", "evaluate.yaml", "out=run"]
    refuses([*words, "config=sample-toybox"], "config: ", "mvdreambooth")
    refuses([*words, "identity.weights=none"], "identity.weights: ", "'none'")
