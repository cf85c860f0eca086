import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.glb_check import Expected, check_glb
from tests.support import box_room
from tests.support.command import ask
from tests.support.task_server import write_config
from tests.support.tiny_mvdiffusion import tiny_prior_config
from tests.support.tiny_prior import cpu
from threedgen.evaluation.views.scenes import FolderScenes
from threedgen.export.surface.blend import SCENE_BLEND
from threedgen.systems.sample.mesh import MeshFrame
from threedgen.systems.texture import scene
from threedgen.systems.texture.scene import render_consistent, with_uv
from threedgen.systems.texture.windows import WindowSampler

TINY = {
    "task": "texture", "threads": 1, "steps": 1, "texture": 64, "guidance_scale": 2.0, "out": "run",
    "rig": {"name": "path", "height": 16, "width": 20, "views": 4, "file": "path.json"},
    "mesh": "room.glb", "prompt": "a red house",
}  # fmt: skip
CONFIG = ("--config", "texture.yaml")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with texture.yaml, room.glb and path.json, 9 cameras of which 3 to 8 are key frames."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "texture.yaml", TINY, prior=tiny_prior_config("depth"))
    box_room.write_glb(tmp_path / "room.glb")
    box_room.write_path(tmp_path / "path.json", box_room.look(36, (16, 20)).select(range(9)), MeshFrame("+y", "+z"))


def frames(run: str = "run") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(run, "frames").glob("*.png"))}


def summary(run: str = "run") -> dict[str, Any]:
    return json.loads(Path(run, "summary.json").read_text())


def test_room_is_sampled_and_textured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, *CONFIG)
    assert code == 0, err
    assert out.splitlines()[-1] == str(Path("run", "scene.glb"))
    found = summary()
    assert found["frames"] == 9 and 3 <= found["key_frames"] < 9 and found["texels_seen"] > 0.1
    assert not found["notes"] and "preview.png" in found["files"]
    for name in found["files"]:
        assert Path("run", name).stat().st_size > 0
    assert len(list(Path("run", "walk").iterdir())) == 8
    assert not check_glb(Path("run", "scene.glb").read_bytes(), Expected(texture=64, scene=True))
    with Image.open("run/depth/0004.png") as image:
        assert image.mode.startswith("I") and 500 < np.asarray(image).mean() < 5000
    views = FolderScenes(Path("."), depth=True).scene(0)
    assert len(views) == 9 and set(views.captions) == {"a red house"} and views.depth.shape == (9, 16, 20)
    # lost frames are sampled again, and only these
    before = frames()
    assert len(before) == 9
    Path("run", "scene.glb").unlink()
    Path("run", "frames", "0001.png").unlink()
    assert ask(capsys, *CONFIG)[0] == 0 and frames() == before and Path("run", "scene.glb").exists()
    # its cameras are a path for the same mesh
    assert ask(capsys, *CONFIG, "rig.file=run/cameras.json", "out=again", "rig.views=12")[0] == 0
    own, again = (json.loads(Path(name, "cameras.json").read_text()) for name in ("run", "again"))
    assert again["files"] == own["files"] and again["files"][0] == "frames/0000.png"
    np.testing.assert_allclose(own["c2w"], again["c2w"], atol=1e-5)


def test_stopped_run_resumes_exactly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(capsys, *CONFIG, "out=whole")[0] == 0
    real = WindowSampler.sample

    def pressed(self: WindowSampler, number: int, on_step: Any) -> Any:
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return real(self, number, on_step)

    with monkeypatch.context() as patch:
        patch.setattr(WindowSampler, "sample", pressed)
        assert ask(capsys, *CONFIG)[0] == 130
    kept = frames()
    assert 0 < len(kept) < 9
    assert ask(capsys, *CONFIG)[0] == 0
    assert frames() == frames("whole") and kept.items() <= frames().items()
    assert Path("run", "texture.png").read_bytes() == Path("whole", "texture.png").read_bytes()


def test_render_consistent_keeps_known_frames() -> None:
    source, at = box_room.scene(), box_room.look(12, (32, 40))
    truth = torch.from_numpy(box_room.truth(source, at))
    tints = torch.linspace(-0.15, 0.15, len(at))[torch.randperm(len(at), generator=cpu())]
    known = torch.arange(len(at)) == 5
    tints[5] = 0
    mesh, _ = with_uv(source, 256)
    same = render_consistent(mesh, 256, SCENE_BLEND, at, torch.full_like(truth, 0.8))
    torch.testing.assert_close(same, torch.full_like(truth, 0.8), msg="without known ones too")
    found = render_consistent(mesh, 256, SCENE_BLEND, at, truth + tints[:, None, None, None], known)
    wrong = [(frame - true).abs().median() for frame, true in zip(found, truth, strict=True)]
    assert wrong[5] < 0.02, "known frames stay"
    assert max(wrong[4], wrong[6]) < 0.05 < tints[[4, 6]].abs().max(), "neighbours see it as the known one has it"


def test_synchronise_includes_all_earlier_frames(capsys, monkeypatch) -> None:
    calls = list[tuple[int, int]]()

    def counted(mesh: Any, size: int, blend: Any, at: Any, images: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        calls.append((len(images), int(known.sum())))
        return render_consistent(mesh, size, blend, at, images, known)

    monkeypatch.setattr(scene, "render_consistent", counted)
    assert ask(capsys, *CONFIG, "out=alone")[0] == 0 and not calls
    assert ask(capsys, *CONFIG, "synchronise=2")[0] == 0
    assert calls[0][1] == 0 and all(before == after for before, after in zip(calls[::2], calls[1::2], strict=True))
    sampled = 0
    for count, known in calls[::2]:
        assert known == sampled < count
        sampled = count
    assert summary("alone")["psnr_of_views"] != summary()["psnr_of_views"]


def test_one_prompt_per_frame(capsys: pytest.CaptureFixture[str]) -> None:
    Path("lines.txt").write_text("a red house\n" * 8 + "a blue cat\n")
    assert ask(capsys, *CONFIG, "prompt=", "prompts=lines.txt")[0] == 0
    assert json.loads(Path("run", "cameras.json").read_text())["prompts"][-1] == "a blue cat"


def test_room_of_its_own_names_in_each_frame_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    text = "prompt=a red house, a blue room with a green sofa and a yellow bed"
    code, out, err = ask(capsys, *CONFIG, "mesh=null", "rig.file=auto", "rig.frames=16", "rig.fov=90", text)
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "scene.glb")), err
    prompts = json.loads(Path("run", "cameras.json").read_text())["prompts"]
    assert all(prompt.startswith("a blue room with") for prompt in prompts)
    for piece in ("green sofa", "yellow bed"):
        assert 0 < sum(piece in prompt for prompt in prompts) < len(prompts)
