"""Text to 3D with an adapter on an unchanged 2D model as the prior."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support.task_server import TINY, server, write_config
from tests.support.tiny_mvadapter import GEOMETRY, tiny_prior_config
from tests.support.toy_run import log
from threedgen import cli
from threedgen.run.metrics import read_summary

SHORT = {"trainer": TINY["trainer"] | {"max_steps": 2}, "warm_start": {"share": 0}, "refine": {"strengths": []}}
WAYS: dict[str, dict[str, Any]] = {
    "reconstruction": {},  # with a warm start from its views, and views that it draws again
    "sds": SHORT,  # these with a reference image
    "vsd": SHORT,
    "ism": SHORT,
    "jsd": SHORT,
}


def reference_image(path: Path) -> str:
    """Write an image of a red object on white."""
    pixels = np.full((24, 32, 3), 255, np.uint8)
    pixels[6:18, 8:28] = (200, 30, 30)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize("name", WAYS)
def test_distillation_runs_with_an_adapter(name: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {} if name == "reconstruction" else {"image": reference_image(tmp_path / "car.png")}
    prior = tiny_prior_config(tmp_path / "prior", **more)
    write_config(tmp_path / "tiny.yaml", TINY | WAYS[name], prior=prior, distillation={"name": name})
    assert server().run(tmp_path, words=["--config", "tiny.yaml", "out=run"]) == 0, log(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and (tmp_path / "run" / "mesh.glb").exists()
    assert (tmp_path / "run" / "preview.png").exists()


def test_geometry_adapter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", TINY, prior=tiny_prior_config(tmp_path / "prior", GEOMETRY))
    assert cli.main(["--config", "tiny.yaml", "--dry-run"]) == 0
    assert "memory: about" in capsys.readouterr().out
    assert cli.main(["--config", "tiny.yaml", "out=run"]) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert "adapter: " in output and "geometry" in output and "ray" in output, output


def test_resume_refuses_another_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prior = tiny_prior_config(tmp_path / "prior")
    write_config(tmp_path / "tiny.yaml", TINY | SHORT, prior=prior)
    assert cli.main(["--config", "tiny.yaml", "--dry-run"]) == 0
    named = capsys.readouterr().out
    assert f"weights: {prior['weights']} (" in named and f"adapter: {prior['adapter']} (" in named
    assert cli.main(["--config", "tiny.yaml", "out=run"]) == 0
    halve(Path(prior["adapter"]))
    capsys.readouterr()
    assert cli.main(["--resume", "run", "trainer.max_steps=3"]) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert output.startswith("prior.adapter: ") and "other weights (SHA-256" in output


def halve(file: Path) -> None:
    """Write a file with all tensors halved and the same metadata."""
    with safe_open(file, "pt") as opened:
        card = opened.metadata()
        tensors = {name: opened.get_tensor(name) / 2 for name in opened.keys()}  # noqa: SIM118  no dict
    save_file(tensors, file, card)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["prior.image=none.png"], ("prior.image: ", "none.png")),
        (["prior.image=white.png"], ("prior.image: ", "white.png")),
        (["prior.image=white.png", "prior.matte=none"], ("prior.matte: ", "none")),
        (["prior.image=car.png", "prior.adapter=null"], ("prior: ", "image", "adapter=")),
    ],
)
def test_unused_reference_image_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    values: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    reference_image(tmp_path / "car.png")
    Image.new("RGB", (8, 8), "white").save("white.png")
    write_config(tmp_path / "tiny.yaml", TINY, prior=tiny_prior_config(tmp_path / "prior"))
    assert cli.main(["--config", "tiny.yaml", *words, "out=run"]) == 2
    output = capsys.readouterr().err
    assert all(value in output for value in values), output
