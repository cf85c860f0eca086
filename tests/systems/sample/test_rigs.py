import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support import command
from tests.support.task_server import prior_folder, write_config
from tests.support.tiny_mvadapter import GEOMETRY, tiny_prior_config
from threedgen.systems.sample.options import SIDES

TINY = {"task": "sample", "threads": 1, "steps": 2}


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    forms = {"rays": None, "mesh": GEOMETRY, "deep": replace(GEOMETRY, fov=40.0)}
    return {name: tiny_prior_config(tmp_path_factory.mktemp(name), form) for name, form in forms.items()}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, priors: dict[str, dict[str, str]]) -> None:
    """A working directory with configs, a mesh and an image with and without background."""
    monkeypatch.chdir(tmp_path)
    for name, prior in priors.items():
        write_config(tmp_path / f"{name}.yaml", TINY, prior=prior, rig={"name": "angles"})
    prior = {"weights": str(prior_folder()), "dtype": "fp32"}
    write_config(tmp_path / "orbit.yaml", TINY, prior=prior, rig={"n_view": 2})
    trimesh.creation.box((0.4, 0.2, 0.8)).export("box.glb")
    pixels = np.full((12, 20, 4), 255, np.uint8)
    pixels[3:9, 5:16, :3] = (200, 30, 30)
    Image.fromarray(pixels[..., :3]).save("plain.png")
    pixels[..., 3] = 255 * (pixels[..., 1] < 100)
    Image.fromarray(pixels).save("cut.png")


def ask(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> tuple[int, str, str]:
    return command.ask(capsys, "--config", f"{name}.yaml", *words)


def test_views_from_text_and_image(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "rays", "prompt=a red dog", "out=run", "rig.height=16", "rig.width=24")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "views.png")), err
    with Image.open("run/views/5.png") as image:
        assert image.size == (24, 16)
    summary = json.loads(Path("run/summary.json").read_text())
    assert len(summary["views"]) == 6 and summary["views"]["3"] == {"azimuth": 180.0, "elevation": 0.0}
    words = ["prompt=a red dog", "rig.views=[[0, 0], [30, 40]]"]
    code, _, err = ask(capsys, "rays", *words, "image=cut.png", "out=image")
    assert code == 0, err
    assert ask(capsys, "rays", *words, "out=text")[0] == 0
    assert Path("image/views/0.png").read_bytes() != Path("text/views/0.png").read_bytes()
    assert ask(capsys, "rays", "image=plain.png", "rig.views=[[0, 0]]", "out=wordless")[0] == 0


def test_views_of_a_mesh(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompt=a red dog", "mesh=box.glb"]
    code, _, err = ask(capsys, "mesh", *words, "out=run")
    assert code == 0, err
    assert {path.stem for path in Path("run/views").iterdir()} == set(SIDES) and Path("run/preview.png").exists()
    assert ask(capsys, "deep", *words, "out=deep")[0] == 0
    front = [np.asarray(Image.open(f"{name}/views/front.png"), np.int16) for name in ("deep", "run")]
    assert np.abs(front[0] - front[1]).max() > 0


def test_sample_writes_one_row_per_sample(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "orbit", "prompt=a red dog", "samples=3", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "views.png"))
    with Image.open("run/views.png") as image:
        assert image.size == (2 * 16 + 3 * 2, 3 * 16 + 4 * 2)
        rows = [image.crop((2, 2 + 18 * k, 36, 18 + 18 * k)).tobytes() for k in range(3)]
    assert len(set(rows)) == 3
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["task"] == "sample" and summary["notes"] == []
    assert ask(capsys, "orbit", "prompt=a red dog", "rig.n_view=0", "out=single", "-q")[:2] == (0, "single/views.png\n")
    with Image.open("single/views.png") as image:
        assert image.size == (16 + 2 * 2,) * 2


def test_sample_depends_on_seed_prompts_and_cameras(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "one": [], "again": [], "other": ["seed=2"], "negative": ["negative_prompt=a green cat"],
        "turned": ["rig.azimuth=90"], "fresh noise": ["eta=1"], "single": ["prior.guide_views=true"],
        "draft": ["prior.draft=0.5"], "suffix": ["suffix=, 3d asset"],
        "said": ["prompt=a red dog, 3d asset", "suffix=, 3d asset"],
    }  # fmt: skip
    images = {}
    for name, words in cases.items():
        assert ask(capsys, "orbit", "prompt=a red dog", f"out={name}", *words)[0] == 0
        images[name] = Path(name, "views.png").read_bytes()
    assert images["one"] == images["again"] and images["suffix"] == images["said"]
    assert len(set(images.values())) == 8
