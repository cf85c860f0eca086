import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.errors import refused
from threedgen.geometry.image_file import read_foreground
from threedgen.geometry.poses import orbit_array
from threedgen.geometry.views import resize
from threedgen.guidance.matte import Matte, remover
from threedgen.toybox.data.room_scenes import room_walks
from threedgen.toybox.options import RoomPathsConfig
from threedgen.toybox.world.grammar import Spec
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import Toybox, build


def test_matte_takes_any_image_size_and_is_saved_in_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    matte = Matte(16, (4, 6)).eval()
    for shape in ((1, 16, 16), (20, 32, 32), (2, 7, 7), (2, 12, 20)):
        opacity = matte.opacity(torch.rand(*shape, 3))
        assert opacity.shape == shape and opacity.min() >= 0 and opacity.max() <= 1
    batches: Any = matte.stem[1].num_batches_tracked
    batches.fill_(70_000)  # above the largest float16
    matte.save(tmp_path / "matte")
    found, x = Matte.load(str(tmp_path / "matte")), torch.rand(3, 16, 16, 3)
    torch.testing.assert_close(found.opacity(x), matte.opacity(x), atol=2e-3, rtol=0)
    assert torch.equal(found.state_dict()["stem.1.num_batches_tracked"], batches)
    assert not any(p.requires_grad for p in found.parameters()) and not found.training


def test_matte_refuses_damaged_folders(tmp_path: Path) -> None:
    with refused("matte", "nowhere", "toybox-matte"):
        Matte.load("nowhere")
    config = tmp_path / "config.json"
    config.write_text('{"_class_name": "AutoencoderKL"}')
    with refused("matte", config, "AutoencoderKL"):
        Matte.load(str(tmp_path))
    folder = tmp_path / "m"
    Matte(16, (4, 6)).save(folder)
    config = folder / "config.json"
    (folder / "SHA256SUMS").unlink()
    config.write_text(config.read_text().replace("16", "1600000"))
    with refused(None, "1600000"):
        Matte.load(str(folder))


def render_on_grey(assets: list, count: int, grey: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Render objects from all around on a grey background: images and their opacity."""
    index = np.repeat(np.arange(len(assets)), count)
    azimuth = np.tile(np.linspace(0, 2 * np.pi, count, endpoint=False), len(assets))
    c2w = orbit_array(np.full(len(index), 0.26), azimuth, 0.95 / np.tan(np.deg2rad(20)))
    scene = (assets, index, c2w, np.full(len(index), np.deg2rad(40.0)), 128)
    images, black, white = (torch.from_numpy(render(*scene, background).rgb) for background in (grey, 0.0, 1.0))
    return images, 1 - (white - black).mean(-1)


def iou(matte: Matte, images: torch.Tensor, truth: torch.Tensor) -> float:
    found = matte.opacity(images) > 0.5
    return float((found & (truth > 0.5)).sum() / (found | (truth > 0.5)).sum())


def test_embedded_matte_finds_held_out_and_grey_objects() -> None:
    box = Toybox(77, "held-out")
    assert iou(Matte.load("toybox-matte"), *render_on_grey([box.asset(i) for i in range(8)], 3, 0.45)) > 0.95
    # grey objects on equal grey
    rng = np.random.default_rng(3)
    objects = [build(Spec(noun, "grey", "", ""), rng) for noun in ("robot", "rocket", "bear", "rabbit")]
    images, truth = render_on_grey(objects, 4, 0.5)
    solid = truth > 0.5
    same_colour = solid & ((images - 0.5).abs().amax(-1) < 0.03)
    assert same_colour.sum() > 200
    found = Matte.load("toybox-matte").opacity(images) > 0.5
    assert found[same_colour].float().mean() > 0.8


def fake_rembg(monkeypatch: pytest.MonkeyPatch, remove: Any) -> None:
    for name in ("rembg", "onnxruntime"):
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["rembg"].remove = remove  # type: ignore[attr-defined]


def test_grabcut_finds_objects_in_rooms_where_the_network_is_refused() -> None:
    pytest.importorskip("cv2")
    box, found = Toybox(81, "held-out"), []
    c2w = orbit_array(np.full(4, 0.15), np.arange(4.0), 1.2 / np.tan(np.deg2rad(20)))
    scene = ([box.asset(k) for k in range(4)], np.arange(4), c2w, np.full(4, np.deg2rad(40.0)), 128)
    black, white = (render(*scene, background).rgb for background in (0.0, 1.0))
    walks = room_walks(RoomPathsConfig(count=4), 5, "test", 6)
    for number in range(4):
        room = resize(walks[number].views([2]).views.images, 128, 128)[0].numpy()
        solid = 1 - (white - black)[number].mean(-1)
        photo = (black[number] + (1 - solid[..., None]) * room).astype(np.float32)
        with refused("matte", "toybox-matte", "rembg", "grabcut"):
            remover("toybox-matte")(photo)
        inside, solid = remover("grabcut")(photo) > 0.5, solid > 0.5
        found.append((inside & solid).sum() / (inside | solid).sum())
    assert np.mean(found) > 0.7 and np.max(found) > 0.9


def test_unusable_removers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Any, only_mask: bool) -> Any:
        raise ConnectionError("no network\nat all")

    fake_rembg(monkeypatch, fail)
    with refused("matte", "rembg", "no network"):
        remover("rembg")(np.zeros((8, 8, 3), np.float32))
    with refused("matte", "toybox-mate", "toybox-matte"):
        remover("toybox-mate")


@pytest.mark.parametrize("name", ["toybox-matte", "rembg"])
def test_remover_cuts_out_opaque_photos(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, truth = render_on_grey([Toybox(77, "held-out").asset(1)], 1, 0.45)
    pixels = np.round(255 * images[0].numpy()).astype(np.uint8)
    pixels[:12] = np.random.default_rng(0).integers(90, 140, (12, 128, 3))  # no background of one colour
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with refused("image", tmp_path / "a.png"):
        read_foreground(str(tmp_path / "a.png"))
    alpha = np.round(255 * truth[0].numpy()).astype(np.uint8)
    fake_rembg(monkeypatch, lambda image, only_mask: Image.fromarray(alpha))
    found = read_foreground(str(tmp_path / "a.png"), remover(name))
    inside, solid = found[..., 3] > 0.5, truth[0].numpy() > 0.5
    assert (inside & solid).sum() / (inside | solid).sum() > 0.9
    assert np.array_equal(np.round(255 * found[..., :3]), pixels)
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "b.png")
    assert np.array_equal(*(read_foreground(str(tmp_path / "b.png"), by) for by in (None, remover(name))))
