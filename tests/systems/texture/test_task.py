"""The task "texture": a room, drawn by a tiny model of random weights, and textured."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import box_room, command
from tests.support.task_server import write_config
from tests.support.tiny_mvdiffusion import tiny_prior_config
from tests.support.tiny_prior import cpu
from threedgen.evaluation.views.folder import FolderScenes
from threedgen.export.files.check import Expected, check_glb
from threedgen.export.surface.blend import SCENE_BLEND
from threedgen.systems.texture import task
from threedgen.systems.texture.drawing import Painter
from threedgen.systems.texture.scene import Coordinates, with_uv
from threedgen.systems.texture.task import on_one_surface

TINY = {
    "task": "texture",
    "threads": 1,
    "height": 16,
    "width": 20,
    "steps": 1,
    "texture": 64,
    "views": 4,
    "shared": 1,
    "guidance_scale": 2.0,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with texture.yaml, room.glb and path.json, 9 cameras of which 3 to 8 are key frames."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "texture.yaml", TINY, prior=tiny_prior_config("depth"))
    box_room.write_glb(tmp_path / "room.glb")
    box_room.write_path(tmp_path / "path.json", box_room.look(36, (16, 20)).select(range(9)), Coordinates("y"))
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    given = ["--config", "texture.yaml", "mesh=room.glb", "path=path.json", "prompt=a red house", "out=run", *words]
    last = {word.partition("=")[0]: word for word in given[2:]}  # an option that is given again counts
    return command.ask(capsys, *given[:2], *(word for word in last.values() if not word.endswith("=")))


def frames() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("run", "frames").glob("*.png"))}


def test_a_room_is_drawn_and_textured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys)
    assert code == 0, err
    assert out.splitlines()[-1] == str(Path("run", "scene.glb"))
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["frames"] == 9 and 3 <= summary["key_frames"] < 9 and summary["texels_seen"] > 0.1
    assert not summary["findings"] and not summary["notes"]
    for name in summary["files"]:
        assert Path("run", name).stat().st_size > 0
    assert len(list(Path("run", "walk").iterdir())) == 8
    assert not check_glb(Path("run", "scene.glb").read_bytes(), Expected(texture=64, scene=True))
    with Image.open("run/depth/0004.png") as picture:
        assert picture.mode.startswith("I") and 500 < np.asarray(picture).mean() < 5000
    scene = FolderScenes(Path("."), depth=True, captions=True).scene(0)
    assert len(scene) == 9 and set(scene.captions) == {"a red house"} and scene.depth.shape == (9, 16, 20)
    # what is finished stays; frames that are lost are drawn again, and only these
    before = frames()
    assert len(before) == 9
    Path("run", "scene.glb").unlink()
    Path("run", "frames", "0001.png").unlink()
    assert ask(capsys)[0] == 0 and frames() == before and Path("run", "scene.glb").exists()
    # its cameras are a path for the same mesh
    assert ask(capsys, "path=run/cameras.json", "out=again", "interpolate=false")[0] == 0
    own, again = (json.loads(Path(name, "cameras.json").read_text()) for name in ("run", "again"))
    assert len(again["c2w"]) == summary["key_frames"] and again["files"][0] == "frames/0000.png"
    np.testing.assert_allclose(own["c2w"][0], again["c2w"][0], atol=1e-5)


def test_a_run_that_is_stopped_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(capsys, "out=whole")[0] == 0
    drawn: Any = Painter.draw

    def pressed(self: Painter, number: int, on_step: Any) -> Any:
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return drawn(self, number, on_step)

    monkeypatch.setattr(Painter, "draw", pressed)
    assert ask(capsys)[0] == 130
    assert "goes on from them" in caplog.text
    kept = frames()
    assert 0 < len(kept) < 9
    monkeypatch.setattr(Painter, "draw", drawn)
    assert ask(capsys)[0] == 0
    expected = {path.name: path.read_bytes() for path in Path("whole", "frames").glob("*.png")}
    assert frames() == expected and kept.items() <= expected.items()
    assert Path("run", "texture.png").read_bytes() == Path("whole", "texture.png").read_bytes()


def test_frames_agree_on_one_surface_and_with_given_ones() -> None:
    scene, at = box_room.scene(), box_room.look(12, (32, 40))
    truth = torch.from_numpy(box_room.truth(scene, at))
    tints = torch.linspace(-0.15, 0.15, len(at))[torch.randperm(len(at), generator=cpu())]
    given = torch.arange(len(at)) == 5
    tints[5] = 0
    mesh, _ = with_uv(scene, 256)
    same = on_one_surface(mesh, 256, SCENE_BLEND, at, torch.full_like(truth, 0.8), given & False)
    torch.testing.assert_close(same, torch.full_like(truth, 0.8), msg="without given ones too")
    found = on_one_surface(mesh, 256, SCENE_BLEND, at, truth + tints[:, None, None, None], given)
    wrong = [(frame - true).abs().median() for frame, true in zip(found, truth, strict=True)]
    assert wrong[5] < 0.02, "what is given stays"
    assert max(wrong[4], wrong[6]) < 0.05 < tints[[4, 6]].abs().max(), "neighbours see it as it is given"


def test_drawn_frames_are_drawn_again_after_they_agree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[tuple[int, int]]()

    def surface(mesh: Any, size: int, trust: Any, at: Any, frames: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        calls.append((len(frames), int(given.sum())))
        return on_one_surface(mesh, size, trust, at, frames, given)

    monkeypatch.setattr(task, "on_one_surface", surface)
    assert ask(capsys, "out=alone")[0] == 0 and not calls
    assert ask(capsys, "synchronise=2")[0] == 0
    assert calls[0][1] == 0 and all(before == after for before, after in zip(calls[::2], calls[1::2], strict=True))
    drawn = 0
    for seen, decided in calls[::2]:  # all that was drawn before decides, and is seen
        assert decided == drawn < seen
        drawn = seen
    alone, together = (json.loads(Path(name, "summary.json").read_text()) for name in ("alone", "run"))
    assert alone["psnr_of_views"] != together["psnr_of_views"]
    code, _, err = ask(capsys, "synchronise=1", "mesh=", "path=", "scannet=.")
    assert code == 2 and "synchronise 1 needs a mesh" in err


def test_key_frames_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "interpolate=false", "views=12")[0] == 0
    assert json.loads(Path("run", "summary.json").read_text())["draws"] == 1


def test_prompts_of_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lines.txt").write_text("a red house\n" * 8)
    code, _, err = ask(capsys, "prompt=", "prompts=lines.txt")
    assert code == 2 and "8 lines" in err and "9 cameras" in err
    (place / "lines.txt").write_text("a red house\n" * 8 + "a blue zzgrblx\n")
    code, out, _ = ask(capsys, "prompt=", "prompts=lines.txt", "--dry-run", "threads=1")
    assert code == 0 and "note: this prior does not know 'zzgrblx'; it is ignored\n" in out
    (place / "lines.txt").write_text("a red house\n" * 8 + "a blue cat\n")
    assert ask(capsys, "prompt=", "prompts=lines.txt", "out=lines", "interpolate=false")[0] == 0
    assert json.loads(Path("lines", "cameras.json").read_text())["prompts"][-1] == "a blue cat"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["mesh="], "mesh: there is none"),
        (["mesh=rom.glb"], "mesh: there is no file"),
        (["mesh=texture.yaml"], "mesh: should be a file of one of the kinds"),
        (["path=pth.json"], "path: pth.json is missing"),
        (["prompt="], 'prompt: is empty. Set it, for example prompt="a blue room'),
        (["scannet=nowhere", "path="], "scannet: should be the folder"),
        (["height=18"], "multiples of 4; try 16 or 20"),
        (["views=1"], "views"),
        (["poses=w2c"], "poses=c2w"),
        (["every=8", "key_overlap=0.9"], "path: no two consecutive key frames"),
        (["every=9"], "every: "),
        ([f"prior.blocks={tiny_prior_config('panorama')['blocks']}"], "prior.blocks: these weights are not told"),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], problem: str) -> None:
    code, _, err = ask(capsys, *words)
    assert code == 2 and problem in err, err
    assert len([line for line in err.splitlines() if "error" not in line.lower()]) <= 2
