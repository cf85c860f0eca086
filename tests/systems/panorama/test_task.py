"""The task "panorama", by tiny models: what it leaves, what it refuses, how it stops and goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from tests.support import command
from tests.support.task_server import write_config
from tests.support.tiny_mvdiffusion import tiny_prior_config
from threedgen.evaluation.views.folder import FolderScenes
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.images import to_uint8
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.systems.panorama import outputs

TINY = {
    "task": "panorama",
    "threads": 1,
    "size": 16,
    "steps": 2,
    "height": 32,
    "film": {"frames": 3, "height": 16, "width": 20},
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configs for text, for a picture and for depth, and a picture of 40 x 20."""
    monkeypatch.chdir(tmp_path)
    for name in ("panorama", "outpaint", "depth"):
        write_config(tmp_path / f"{name}.yaml", TINY, prior=tiny_prior_config(name))
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, 40)
    Image.fromarray(pixels).save("photo.png")
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], config: str, *words: str) -> tuple[int, str, str]:
    return command.ask(capsys, "--config", f"{config}.yaml", *words)


def picture(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_panorama_and_all_that_is_made_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "panorama", "prompt=a red house", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "panorama.png")) and "denoising: 2/2" in err
    views = [picture(f"run/views/{n}.png") for n in range(8)]
    assert {view.shape for view in views} == {(16, 16, 3)} and len({view.tobytes() for view in views}) == 8
    cameras = read_cameras(Path("run/cameras.json"), "")
    assert cameras.files == tuple(f"views/{n}.png" for n in range(8)) and set(cameras.prompts) == {"a red house"}
    assert cameras.cameras.K[7, 0].tolist() == pytest.approx([8, 0, 8]) and not cameras.cameras.position.any()
    assert cameras.cameras.c2w[2, :3, 2].tolist() == pytest.approx(
        [0, 1, 0], abs=1e-6
    )  # the third view looks to the right
    scene = FolderScenes(Path("run"), depth=False, captions=True).scene(0)
    assert scene.captions == cameras.prompts and np.array_equal(to_uint8(scene.views.images[3]), views[3])
    height, width = picture("run/panorama.png").shape[:2]
    summary = json.loads(Path("run/summary.json").read_text())
    assert width == 64 and summary["height_in_degrees"] == pytest.approx(360 * height / width) and height < 32
    assert iio.imread("run/panorama.mp4").shape == (3, 16, 20, 3)
    page = Path("run/panorama.html").read_text()
    assert "a red house" in page and "data:image/png;base64," in page and "://" not in page
    assert summary["status"] == "finished" and summary["prompts"] == ["a red house"] * 8 and not summary["given_share"]
    code, _, err = ask(capsys, "panorama", "prompt=a red house", "out=run")
    assert code == 0 and "denoising" not in err


def test_a_line_for_each_view(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"a {colour} {noun}" for noun in ("dog", "cat") for colour in ("red", "blue", "green", "the")]
    Path("lines.txt").write_text("\n".join(["", *lines, ""]), encoding="utf-8-sig")
    assert ask(capsys, "panorama", "prompts=lines.txt", "prefix=the house. ", "out=lines")[0] == 0
    assert json.loads(Path("lines/summary.json").read_text())["prompts"] == [f"the house. {line}" for line in lines]
    assert ask(capsys, "panorama", f"prompt={lines[0]}", "prefix=the house. ", "out=one")[0] == 0
    assert (picture("lines/views/0.png") != picture("one/views/0.png")).any()  # its neighbours show something else
    assert ask(capsys, "panorama", "prompts=lines.txt", "prefix=the house. ", "synchronise=1", "out=agree")[0] == 0
    agreed, before = ([picture(f"{run}/views/{n}.png").astype(float) for n in range(8)] for run in ("agree", "lines"))
    assert any((a != b).any() for a, b in zip(agreed, before, strict=True))
    Path("lines.txt").write_text("\n".join(lines[::-1]))
    code, _, err = ask(capsys, "panorama", "prompts=lines.txt", "prefix=the house. ", "out=lines")
    assert code == 2 and "another config" in err  # the lines count, not the name of their file


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ("prompt: ", "prompt=")),
        (["prompts=short.txt"], ("prompts: ", "7", "8", "prompt=")),
        (["prompts=short.txt", "prompt=a dog"], ("prompts: ", "prompt=")),
        (["prompts=empty.txt"], ("prompts: ", "empty.txt")),
        (["prompts=none.txt"], ("prompts: ", "none.txt", "No such file")),
        (["prompts=photo.png"], ("prompts: ", "photo.png")),
        (["prompt=a dog", "views=1"], ("views 1", "sample")),
        (["prompt=a dog", "views=4"], ("views 4", "views=5")),
        (["prompt=a dog", "views=3", "fov=120"], ("views 3", "views=4")),
        (["prompt=a dog", "size=18"], ("size: ", "4", "16", "20", "18 x 18")),
        (["prompt=a dog", "image=photo.png"], ("image_fov: ", "67")),
        (["prompt=a dog", "image_fov=67"], ("image_fov: ", "image=")),
        (["prompt=a dog", "image=gone.png", "image_fov=67"], ("image: ", "'gone.png'")),
        (["prompt=a dog", "image=short.txt", "image_fov=67"], ("image: ", "short.txt")),
        (["prompt=a dog", "image=photo.png", "image_fov=200"], ("image_fov", "150")),
        (["prompt=a dog", "image=photo.png", "image_fov=67"], ("image: ", "outpaint")),
        (["prompt=a dog", "mask=author"], ("mask", "code", "paper")),
    ],
)
def test_what_cannot_be_drawn_is_said(
    capsys: pytest.CaptureFixture[str], words: list[str], said: tuple[str, ...]
) -> None:
    Path("short.txt").write_text("a dog\n" * 7)
    Path("empty.txt").write_text("\n")
    code, _, err = ask(capsys, "panorama", *words, "out=run")
    assert code == 2 and err.count("\n") == 1 and all(part in err for part in said), err


def test_unknown_words_are_told_before_anything_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    Path("lines.txt").write_text("a zzgrblx\n" + "a red hoouse\n" * 7)
    code, out, _ = ask(capsys, "panorama", "prompts=lines.txt", "--dry-run", "threads=1")
    assert code == 0 and not Path("outputs").exists()
    assert "note: this prior does not know 'zzgrblx', 'hoouse' (nearest: house); they are ignored\n" in out


def test_models_of_depth_draw_no_panorama(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ask(capsys, "depth", "prompt=a dog", "out=run")
    assert code == 2 and err.count("\n") == 1 and "known depth" in err and "mvdiffusion-pano-toybox" in err


def test_a_panorama_around_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    seen = {}
    for name, words in {
        "code": ["image=photo.png", "image_fov=60"],
        "paper": ["image=photo.png", "image_fov=60", "mask=paper"],
        "wide": ["image=photo.png", "image_fov=120"],
        "nothing": [],
    }.items():
        assert ask(capsys, "outpaint", "prompt=a red house", f"out={name}", *words)[0] == 0
        seen[name] = b"".join(picture(f"{name}/views/{n}.png").tobytes() for n in range(8))
    assert len(set(seen.values())) == 4
    assert [path.name for path in Path("code/given").iterdir()] == ["0.png"]
    given = picture("code/given/0.png")
    shown = given[..., 3] == 255
    assert shown.any(0).sum() == 8 and shown.any(1).sum() == 4  # whole ones of 9.2 x 4.6 (16 tan 30)
    assert (np.diff(given[8, shown[8], 0].astype(int)) > 0).all() and given[8, shown[8], 1].max() == 0
    assert sorted(path.name for path in Path("wide/given").iterdir()) == ["0.png", "1.png", "2.png", "6.png", "7.png"]
    assert not Path("nothing/given").exists()
    assert "no picture is given" in json.loads(Path("nothing/summary.json").read_text())["notes"][0]
    assert json.loads(Path("code/summary.json").read_text())["notes"] == []


def test_ctrl_c_stops_between_two_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], MVDiffusion.denoise_views

    def pressed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(MVDiffusion, "denoise_views", pressed)
    code, out, _ = ask(capsys, "panorama", "prompt=a dog", "out=run")
    step = 2  # with the prompt and without
    assert code == 130 and len(calls) == step and not Path("run/views.safetensors").exists()
    assert "panorama.png" not in out
    assert ask(capsys, "panorama", "prompt=a dog", "out=run")[0] == 0 and len(calls) == 3 * step


def test_views_that_were_drawn_are_not_drawn_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write_mp4", full)
        code, _, err = ask(capsys, "panorama", "prompt=a dog", "out=run")
    assert code == 3 and "No space left on device" in err and not Path("run/summary.json").exists()
    monkeypatch.setattr(MVDiffusion, "sample_views", None)
    assert ask(capsys, "panorama", "prompt=a dog", "out=run")[0] == 0
    assert Path("run/panorama.html").exists()
