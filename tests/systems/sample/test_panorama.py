import json
import signal
from math import pi, radians
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

from tests.geometry.test_panorama import colours, photograph
from tests.support import command
from tests.support.errors import refused
from tests.support.task_server import write_config
from tests.support.tiny_mvdiffusion import tiny_prior_config
from threedgen.config import load
from threedgen.config.errors import DiskFull
from threedgen.evaluation.views.scenes import FolderScenes
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.images import to_uint8
from threedgen.geometry.panorama import intrinsics, ring
from threedgen.geometry.warp import pixel_grid
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.run.arrays import Array
from threedgen.systems.sample import panorama

RIG = {"name": "panorama", "size": 16, "height": 32, "film": {"frames": 3, "height": 16, "width": 20}}
TINY = {"task": "sample", "threads": 1, "steps": 2, "rig": RIG}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with configs for text and for an image, and an image of 40 x 20."""
    monkeypatch.chdir(tmp_path)
    for name in ("panorama", "outpaint"):
        write_config(tmp_path / f"{name}.yaml", TINY, prior=tiny_prior_config(name))
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, 40)
    Image.fromarray(pixels).save("photo.png")


def ask(capsys: pytest.CaptureFixture[str], config: str, *words: str) -> tuple[int, str, str]:
    return command.ask(capsys, "--config", f"{config}.yaml", *words)


def pixels(path: str) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


def views(run: str) -> list[Array]:
    return [pixels(f"{run}/views/{n}.png") for n in range(8)]


def test_panorama_files(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "panorama", "prompt=a red house", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "panorama.png")) and "denoising: 2/2" in err
    assert {view.shape for view in views("run")} == {(16, 16, 3)}
    assert len({view.tobytes() for view in views("run")}) == 8
    found = read_cameras(Path("run/cameras.json"), "")
    assert found.files == tuple(f"views/{n}.png" for n in range(8)) and set(found.prompts) == {"a red house"}
    assert found.cameras.K[7, 0].tolist() == pytest.approx([8, 0, 8]) and not found.cameras.position.any()
    assert found.cameras.c2w[2, :3, 2].tolist() == pytest.approx([0, 1, 0], abs=1e-6)  # the third looks to the right
    scene = FolderScenes(Path("run"), depth=False).scene(0)
    assert scene.captions == found.prompts and np.array_equal(to_uint8(scene.views.images[3]), views("run")[3])
    height, width = pixels("run/panorama.png").shape[:2]
    summary = json.loads(Path("run/summary.json").read_text())
    assert width == 64 and summary["height_in_degrees"] == pytest.approx(360 * height / width) and height < 32
    assert iio.imread("run/panorama.mp4").shape == (3, 16, 20, 3)
    page = Path("run/panorama.html").read_text()
    assert "a red house" in page and "data:image/png;base64," in page and "://" not in page
    assert summary["status"] == "finished" and summary["prompts"] == ["a red house"] * 8 and not summary["given_share"]
    code, _, err = ask(capsys, "panorama", "prompt=a red house", "out=run")
    assert code == 0 and "denoising" not in err


def test_one_prompt_per_view(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"a {colour} {noun}" for noun in ("dog", "cat") for colour in ("red", "blue", "green", "the")]
    Path("lines.txt").write_text("\n".join(["", *lines, ""]), encoding="utf-8-sig")
    assert ask(capsys, "panorama", "prompts=lines.txt", "prefix=the house. ", "out=lines")[0] == 0
    assert json.loads(Path("lines/summary.json").read_text())["prompts"] == [f"the house. {line}" for line in lines]
    assert ask(capsys, "panorama", f"prompt={lines[0]}", "prefix=the house. ", "out=one")[0] == 0
    assert (views("lines")[0] != views("one")[0]).any()  # its neighbours differ
    assert ask(capsys, "panorama", "prompts=lines.txt", "prefix=the house. ", "synchronise=1", "out=sync")[0] == 0
    assert any((a != b).any() for a, b in zip(views("sync"), views("lines"), strict=True))
    Path("lines.txt").write_text("\n".join(lines[::-1]))
    code, _, err = ask(capsys, "panorama", "prompts=lines.txt", "prefix=the house. ", "out=lines")
    assert code == 2 and "another config" in err  # the lines count, not the name of their file


def test_panorama_around_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name, words in {
        "code": ["image=photo.png", "rig.image_fov=60"],
        "wide": ["image=photo.png", "rig.image_fov=120"],
        "nothing": [],
    }.items():
        assert ask(capsys, "outpaint", "prompt=a red house", f"out={name}", *words)[0] == 0
        found[name] = b"".join(view.tobytes() for view in views(name))
    assert len(set(found.values())) == 3
    assert [path.name for path in Path("code/given").iterdir()] == ["0.png"]
    given = pixels("code/given/0.png")
    mask = given[..., 3] == 255
    assert mask.any(0).sum() == 8 and mask.any(1).sum() == 4  # whole pixels of 9.2 x 4.6 (16 tan 30)
    assert (np.diff(given[8, mask[8], 0].astype(int)) > 0).all() and given[8, mask[8], 1].max() == 0
    assert sorted(path.name for path in Path("wide/given").iterdir()) == ["0.png", "1.png", "2.png", "6.png", "7.png"]
    assert not Path("nothing/given").exists()
    notes = [json.loads(Path(f"{name}/summary.json").read_text())["notes"] for name in ("nothing", "code")]
    assert list(map(len, notes)) == [1, 0]


def test_stitched_panoramas_are_refused() -> None:
    options = load("outpaint.yaml", ["prompt=a red house", "image=wide.png", "rig.image_fov=60"])
    Image.new("RGB", (50, 20)).save("wide.png")
    options.check()
    Image.new("RGB", (60, 20)).save("wide.png")
    with refused("image"):
        options.check()


def test_views_of_another_image_are_sampled_again(capsys: pytest.CaptureFixture[str]) -> None:
    words, found = ["prompt=a red house", "image=photo.png", "rig.image_fov=120", "out=run"], []
    for colour in (0, 255):
        Image.new("RGB", (40, 20), (colour, 0, 0)).save("photo.png")
        assert ask(capsys, "outpaint", *words)[0] == 0
        found.append(b"".join(view.tobytes() for view in views("run")))
        Path("run", "panorama.png").unlink()
    assert found[0] != found[1]


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


def test_resumed_run_keeps_its_views(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(panorama, "write_mp4", full)
        code, _, err = ask(capsys, "panorama", "prompt=a dog", "out=run")
    assert code == DiskFull.exit_code and "No space left on device" in err and not Path("run/summary.json").exists()
    monkeypatch.setattr(MVDiffusion, "sample_views", None)
    assert ask(capsys, "panorama", "prompt=a dog", "out=run")[0] == 0
    assert Path("run/panorama.html").exists()


@pytest.mark.parametrize(("fov", "height", "width"), [(67, 30, 40), (90, 200, 150), (110, 90, 160), (30, 300, 400)])
def test_warp_image_matches_what_the_views_see(fov: float, height: int, width: int) -> None:
    size, R = 64, ring(8)
    rays = pad(pixel_grid(height, width), (0, 1), value=1.0)
    image = colours(rays @ torch.linalg.inv(intrinsics(radians(fov), height, width)).T).float()
    found, mask = panorama.warp_image(image, radians(fov), intrinsics(pi / 2, size, size), R, size)
    expected = photograph(R, size).permute(0, 2, 3, 1)
    assert (found - expected)[mask].abs().max() < 0.02 and not found[~mask].any()
    half = np.tan(radians(fov / 2))
    sides = [min(1.0, half), min(1.0, half * height / width)]
    assert mask[0].double().mean() == pytest.approx(sides[0] * sides[1], abs=0.05)
    assert mask[1:].any() == (fov > 90)
    assert torch.equal(mask[1].flip(-1), mask[7]) and not mask[4].any()
