import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import ask
from tests.support.task_server import prior_folder, write_config
from tests.support.tiny_sdxl import tiny_sdxl

SAMPLE = {"task": "sample", "threads": 1, "rig": {"n_view": 2}, "steps": 2}
CONFIG = ("--config", "sample.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "sample.yaml", SAMPLE, prior={"weights": str(prior_folder()), "dtype": "fp32"})


def test_sample_writes_one_row_per_sample(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, *CONFIG, "prompt=a red dog", "samples=3", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "views.png"))
    with Image.open("run/views.png") as image:
        assert image.size == (2 * 16 + 3 * 2, 3 * 16 + 4 * 2)
        rows = [image.crop((2, 2 + 18 * k, 36, 18 + 18 * k)).tobytes() for k in range(3)]
    assert len(set(rows)) == 3
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["task"] == "sample" and summary["notes"] == []
    assert ask(capsys, *CONFIG, "prompt=a red dog", "rig.n_view=0", "out=single", "-q")[:2] == (0, "single/views.png\n")
    with Image.open("single/views.png") as image:
        assert image.size == (16 + 2 * 2,) * 2


def test_sample_depends_on_seed_prompts_and_cameras(capsys: pytest.CaptureFixture[str]) -> None:
    images = {}
    for name, words in {
        "one": [],
        "again": [],
        "other": ["seed=2"],
        "negative": ["negative_prompt=a green cat"],
        "turned": ["rig.azimuth=90"],
        "fresh noise": ["eta=1"],
        "single": ["prior.guide_views=true"],
        "draft": ["prior.draft=0.5"],
        "suffix": ["suffix=, 3d asset"],
        "said": ["prompt=a red dog, 3d asset", "suffix=, 3d asset"],
    }.items():
        assert ask(capsys, *CONFIG, "prompt=a red dog", f"out={name}", *words)[0] == 0
        images[name] = Path(name, "views.png").read_bytes()
    assert images["one"] == images["again"] and images["suffix"] == images["said"]
    assert len(set(images.values())) == 8


def test_sample_writes_single_images_of_sdxl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_sdxl(tmp_path / "sdxl")
    words = ["prior.name=stable-diffusion", f"prior.weights={tmp_path / 'sdxl'}", "rig.n_view=0", "samples=2"]
    assert ask(capsys, *CONFIG, "prompt=a red car", *words, "out=run", "-q")[0] == 0
    with Image.open("run/views.png") as image:
        assert image.size == (16 + 2 * 2, 2 * 16 + 3 * 2)
