"""SceneBank: entries equal the encoded scenes of the source."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.errors import refused
from tests.support.tiny_prior import tiny_vae
from threedgen.config import registry
from threedgen.data.bank import encode, pack, unpack
from threedgen.data.scene_bank import SceneBank
from threedgen.data.walks import WalkScenes
from threedgen.toybox.options import RoomPanoramasConfig, RoomPathsConfig

PATHS = RoomPathsConfig(count=6, height=12, width=16, views=3, between=1.0, supersample=1)


def test_entries_equal_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, vae = registry.build("scene-source", PATHS, 0, "train"), tiny_vae()
    bank, scene = SceneBank(tmp_path, source, vae), source.scene(5)
    z = bank.latents([5, 0])
    assert (bank.count, bank.size, bank.n_view) == (6, (12, 16), 3) and z.shape == (2, 3, 4, 6, 8)
    assert torch.allclose(z[0], encode(vae, scene.views.images), atol=2e-3)
    assert bank.captions([5]) == [scene.captions] and bank.condition_mask([5]).tolist() == [[True, False, True]]
    assert scene.depth is not None and (bank.depth([5])[0] - scene.depth).abs().max() < 2e-3
    cameras = bank.cameras(5)
    assert torch.equal(cameras.c2w, scene.views.cameras.c2w) and torch.equal(cameras.K, scene.views.cameras.K)
    monkeypatch.setattr(WalkScenes, "scene", lambda self, index: 1 / 0 if index else scene)
    again = SceneBank(tmp_path, source, vae)
    assert torch.equal(again.latents([5, 0]), z), "read from disk"
    with pytest.raises(ZeroDivisionError):  # another seed, so rendered again
        SceneBank(tmp_path, registry.build("scene-source", PATHS, 1, "train"), vae).latents([5])


def test_scenes_without_depth(tmp_path: Path) -> None:
    source = registry.build("scene-source", RoomPanoramasConfig(count=9, size=16, views=2, supersample=1), 0, "train")
    bank = SceneBank(tmp_path, source, tiny_vae(), 5)
    assert bank.count == 5 and bank.latents([4]).shape == (1, 2, 4, 8, 8) and not bank.condition_mask([4]).any()
    with refused(None, "depth", kind=ValueError):
        bank.depth([0])
    odd = registry.build("scene-source", RoomPanoramasConfig(count=1, size=15, views=1), 0, "train")
    with refused(None, "15 x 15", 2, kind=ValueError):
        SceneBank(tmp_path, odd, tiny_vae())


def test_pack_truncates_long_texts() -> None:
    assert unpack(pack("a blue dog", 240)) == "a blue dog" and unpack(pack("ää", 3)) == "ä"
    assert pack("abc", 5).tolist() == [97, 98, 99, 0, 0] and pack("", 2).dtype == np.uint8
